"""What files are written in: ONNX's oldest opset with every operator, names, number types."""

from typing import Literal

OPSET = 18
IR_VERSION = 10
NOISE, ACTION = "noise", "action"
Precision = Literal["float32", "float16"]
