"""How far two quantizers of the same weights differ: on the same ranges, in codes of the last site.

At 8 bits one rounding that falls the other way in an early site (its input differs in the last bit) moves all that
follows by a step or a few; so what is compared is how many codes are equal and how far the others are, not equality.
Shapes: s sites, n images.
"""

import numpy as np

from psaq_jax.errors import InputError
from psaq_jax.sites import Ranges


def named_ranges(ours: Ranges, theirs: np.ndarray) -> Ranges:
    """The release's ranges [s, 2] under our sites' names: both count sites in running order.

    Raises:
      InputError: another number of sites.
    """
    if theirs.shape != (len(ours), 2):
        raise InputError(f"the release has ranges {list(theirs.shape)}, expected {len(ours)} sites; is it PSAQ-ViT's?")
    return {name: (low, high) for name, (low, high) in zip(ours, theirs.astype(np.float32), strict=True)}


def range_difference(ours: Ranges, theirs: Ranges) -> float:
    """The largest difference of two ends of a site's range, as a part of that range's length."""
    ends = np.asarray([[*ours[name], *theirs[name]] for name in ours], np.float64)
    length = np.maximum(ends[:, 3] - ends[:, 2], np.finfo(np.float32).eps)
    return float((np.abs(ends[:, :2] - ends[:, 2:]).max(axis=1) / length).max())


def logit_parity(ours: np.ndarray, theirs: np.ndarray, scale: float) -> dict:
    """Of the logits [n, classes] of two quantizers on the same images, both multiples of the last site's `scale`.

    Returns:
      {"images", "equal_codes": percent of the last site's codes, "largest_difference": of the logits,
       "largest_steps": the same in codes, "same_top1": percent of the images}
    """
    codes, other = np.rint(ours / scale), np.rint(theirs / scale)
    return {
        "images": len(ours),
        "equal_codes": float(100 * (codes == other).mean()),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "largest_steps": int(np.abs(codes - other).max()),
        "same_top1": float(100 * (ours.argmax(-1) == theirs.argmax(-1)).mean()),
    }
