"""A policy behind HTTP and WebSocket: `bodies` are read, a `batcher` computes, an `app` answers.

Needs the extra ``serve``. Start it by ``python -m gtp_runtime serve policy.onnx``.
"""
