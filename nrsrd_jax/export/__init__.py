"""Models as files for other programs (ONNX, StableHLO, PyTorch), compared with ours before they are written."""
