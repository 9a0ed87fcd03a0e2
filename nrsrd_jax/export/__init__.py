"""Models as files for other programs (ONNX, StableHLO, PyTorch), compared with ours before they are written."""

# The first opset has LayerNormalization. No runtime needs operators newer than the last opset's yet.
OPSETS = range(17, 24)
