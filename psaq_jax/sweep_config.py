"""`SweepConfig`: the settings of a sweep."""

import dataclasses

from psaq_jax.checks import check_seed
from psaq_jax.config import DISTILL, JobConfig, QuantizationConfig, plain_source
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.errors import InputError
from psaq_jax.models.model import Model
from psaq_jax.models.preprocessing_configs import fractional


class SweepQuantization(QuantizationConfig):
    """The main job's, and "distill" among the recipes: what "default" makes, trained by `psaq_jax.distillation`."""

    def check_recipe(self, name: str) -> None:
        if name != DISTILL:
            super().check_recipe(name)


@dataclasses.dataclass(frozen=True)
class SweepConfig(JobConfig):
    """The main job's settings, with several models and seeds.

    Attributes:
      models: sources as `model`; default: `model` alone.
      seeds: default: `seed` alone.
      distillation: of recipe "distill". The generator takes its turns where calibration is "synthesized"; from noise
        and real images the student learns on the calibration set alone, as many steps.
      crop_fraction: preprocessing in place of the checkpoint's own: short side to size / crop_fraction, rounded down,
        bicubic, centre crop (timm's crop_pct); 0: the checkpoint's own.
    """

    model: str = ""
    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    crop_fraction: float = 0.0
    quantization: SweepQuantization = dataclasses.field(default_factory=SweepQuantization)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)

    def __post_init__(self):
        super().__post_init__()
        models, seeds = (tuple(x) if isinstance(x, list | tuple) else (x,) for x in (self.models, self.seeds))
        models, seeds = models or (self.model,), seeds or (self.seed,)
        for name in models:
            if not isinstance(name, str) or not name:
                raise InputError(f"models has {name!r}, expected sources such as 'bundled:fashion_mnist_vit'")
        for seed in seeds:
            check_seed(seed, "one of seeds")
        object.__setattr__(self, "models", tuple(dict.fromkeys(map(plain_source, models))))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(seeds)))
        if self.crop_fraction and not 0.1 <= self.crop_fraction <= 1:
            raise InputError(f"crop_fraction is {self.crop_fraction!r}, expected 0.1 to 1, or 0: the checkpoint's own")

    def preprocessed(self, model: Model) -> Model:
        """The model with this config's preprocessing."""
        if not self.crop_fraction:
            return model
        geometry = fractional(model.image_size, self.crop_fraction, "center")
        changed = dataclasses.replace(model.preprocessing, interpolation="bicubic", **geometry)
        return model.replace(preprocessing=changed)
