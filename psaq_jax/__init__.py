"""Data-free quantization of vision transformers (PSAQ-ViT) in JAX: the public names."""

from psaq_jax.errors import InputError
from psaq_jax.evaluation import Metrics, evaluate
from psaq_jax.models.loading import load_model
from psaq_jax.models.model import Model
from psaq_jax.quantization.artefact import load_quantized, save_quantized
from psaq_jax.quantization.calibration import calibrate
from psaq_jax.quantization.transform import QuantizedModel, quantize
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.driver import SynthesisResult, synthesize

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Metrics",
    "Model",
    "QuantizedModel",
    "SynthesisConfig",
    "SynthesisResult",
    "calibrate",
    "evaluate",
    "load_model",
    "load_quantized",
    "quantize",
    "save_quantized",
    "synthesize",
]
