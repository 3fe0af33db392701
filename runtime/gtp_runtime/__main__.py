"""Commands: look into a policy file, serve it.

python -m gtp_runtime info policy.onnx
python -m gtp_runtime serve policy.onnx --port 8000
"""

import argparse
import json
import sys
from collections.abc import Sequence

from gtp_runtime._version import __version__
from gtp_runtime.errors import GTPRuntimeError, MissingDependencyError
from gtp_runtime.policy import Policy


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: What follows the program's name; default those of the process.

    Returns:
        Exit status: 0, or 1 after an error, which is printed.
    """
    options = _parser().parse_args(arguments)
    try:
        policy = Policy.load(
            options.policy,
            backend=options.backend,
            threads=options.threads,
            bounds=options.bounds,
        )
        if options.command == "info":
            print(json.dumps(policy.document.content, indent=2))
            print(policy)
        else:
            _serve(policy, options)
    except (GTPRuntimeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(policy: Policy, options: argparse.Namespace) -> None:
    try:
        from gtp_runtime.serving.app import Limits
        from gtp_runtime.serving.server import serve
    except ImportError as error:
        raise MissingDependencyError(
            f"Serving needs more: got {error}, expected the extra `serve`. Install "
            "'gtp-policy-runtime[serve]'."
        ) from error
    limits = Limits(
        body_bytes=options.max_body,
        body_seconds=options.body_seconds,
        rows=options.max_rows,
        waiting=options.max_waiting,
        connections=options.max_connections,
    )
    serve(policy, host=options.host, port=options.port, limits=limits)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m gtp_runtime",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="check a policy file and print what it says of itself")
    serve = commands.add_parser(
        "serve",
        help="answer observations over HTTP and WebSocket",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for command in (info, serve):
        command.add_argument("policy", help="a file that gtp_policy.export wrote")
        command.add_argument(
            "--backend", choices=["auto", "onnxruntime", "numpy"], default="auto", help="computes"
        )
        command.add_argument("--threads", type=int, default=1, help="of one computation")
        command.add_argument(
            "--bounds",
            choices=["ignore", "clip", "refuse"],
            default="ignore",
            help="observations outside the file's bounds",
        )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    serve.add_argument("--max-body", type=int, default=2**20, help="bytes of a request")
    serve.add_argument("--body-seconds", type=float, default=5.0, help="for a body to arrive")
    serve.add_argument("--max-rows", type=int, default=256, help="observations of a request")
    serve.add_argument("--max-waiting", type=int, default=256, help="requests in the queue")
    serve.add_argument("--max-connections", type=int, default=512, help="at a time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
