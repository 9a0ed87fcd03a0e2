"""Export models as files for other programs (ONNX, StableHLO, PyTorch), after comparing their features with ours."""

# The first opset introduced LayerNormalization. No runtime requires an opset newer than the last one.
OPSETS = range(17, 24)
