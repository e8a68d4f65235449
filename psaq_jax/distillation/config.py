"""`DistillationConfig`: every number of the distillation."""

import dataclasses

from psaq_jax.checks import check_types, check_weight, check_whole
from psaq_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """How teacher and student compete. The defaults did best on the bundled model, they are not V2's.

    Attributes:
      cycles: how often generator and student take turns.
      generator_iterations: iterations of the generator's images a turn; 0: no generator, the student sees the images
        that it started on alone.
      student_steps: Adam steps of the student a turn.
      batch_size: images a step of the student.
      discrepancy_weight: of the discrepancy, which the generator's images enlarge.
      generator_cross_entropy: weight of the labels' term in the generator's loss; V2 has no labels: 0.
      memory: the student draws from all images so far; off, as in V2: from the newest turn's.
      mixing: part of the images that are blended with another one in a random proportion; V2 has none.
      feature_weight: of the discrepancy of the blocks' outputs; V2: 0.
      kernel_rate, scale_rate, float_rate: Adam's peak rates: of kernels (in parts of their channel's largest code), of
        scales (in parts of themselves), of biases and the like (in parts of their root mean square).
    """

    cycles: int = 8
    generator_iterations: int = 25
    student_steps: int = 50
    batch_size: int = 32
    discrepancy_weight: float = 1.0
    generator_cross_entropy: float = 0.0
    memory: bool = True
    mixing: float = 0.0
    feature_weight: float = 1.0
    kernel_rate: float = 3e-4
    scale_rate: float = 1e-4
    float_rate: float = 3e-4

    def __post_init__(self):
        check_types("distillation", self)
        for name, least in (("cycles", 1), ("generator_iterations", 0), ("student_steps", 1), ("batch_size", 1)):
            check_whole(f"distillation.{name}", getattr(self, name), least, 10**6)
        for name in ("discrepancy_weight", "generator_cross_entropy", "feature_weight"):
            check_weight(f"distillation.{name}", getattr(self, name))
        for name in ("kernel_rate", "scale_rate", "float_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"distillation.{name} is {getattr(self, name)!r}, expected 0 to less than 1")
        if not 0 <= self.mixing <= 1:
            raise InputError(f"distillation.mixing is {self.mixing!r}, expected 0 to 1")

    @property
    def turn_length(self) -> int:
        """Ticks of a turn: iterations of the generator and steps of the student."""
        return self.generator_iterations + self.student_steps

    @property
    def ticks(self) -> int:
        return self.cycles * self.turn_length

    @property
    def steps(self) -> int:
        """Of the student, in all."""
        return self.cycles * self.student_steps
