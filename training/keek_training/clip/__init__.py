"""CLIP: from an open-clip model to two ONNX encoders, a tokenizer and a record of how to use them."""
