"""Models that leave psaq_jax: StableHLO for any process with jax, ONNX for ONNX Runtime and its like."""
