"""Asks a policy server for an action: python examples/serving/client.py PORT NUMBER..."""

import http.client
import json
import sys
import time


def act(server: http.client.HTTPConnection, obs: list[float]) -> list[float]:
    """Returns the server's action; waits and asks again where it is busy."""
    while True:
        body = json.dumps({"obs": obs, "deterministic": True})
        server.request("POST", "/act", body, {"content-type": "application/json"})
        response = server.getresponse()
        body = response.read()
        if response.status == 503:  # of too many connections it is plain text
            time.sleep(float(response.headers.get("retry-after", 1)))
            continue
        answer = json.loads(body)
        if response.status != 200:
            raise ValueError(answer["error"]["message"])
        return answer["action"]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    link = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
    print(act(link, [float(number) for number in sys.argv[2:]]))
