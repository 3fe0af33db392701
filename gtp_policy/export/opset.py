"""Which ONNX the files are written in: the oldest that has every operator they use."""

OPSET = 18
IR_VERSION = 10
