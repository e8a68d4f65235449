"""One honest sentence about the figures: what they show, and what not."""

from psaq_jax.report.settings import Setting, Spread, settings
from psaq_jax.text_tables import one_line

# The paper's ablation: calibrated on Gaussian noise, DeiT loses tens of points; less is no collapse.
COLLAPSE = 10.0  # points of top-1 (or of agreement below 100)


def summary_line(results: dict) -> str:
    """What the figures show and what they don't, in one sentence that is worded from the numbers.

    It says how synthesized calibration came out against noise for each pair of bit-widths, whether noise
    collapsed as it does on DeiT in the paper (at least 10 points lost), so whether the run tells what
    synthesized images are worth, and where a single seed or missing labels limit it.
    """
    found = settings(results)
    if not found:
        return "Nothing was quantized in this run, so it shows nothing yet."
    labelled = any(s.top1 for s in found)
    clauses = _comparisons(found, labelled) or _plain(found, labelled)
    sentence = "; ".join([*clauses, *_meaning(found, labelled), *_limits(found, labelled)]) + "."
    return sentence[0].upper() + sentence[1:]


def _figure(setting: Setting, labelled: bool):
    return setting.top1 if labelled else setting.agreement


def _pairs(found, labelled):
    """(synthesized, noise) of every recipe and bits that has both with figures."""
    by_key = {(s.recipe, s.bits, s.calibration): s for s in found if _figure(s, labelled)}
    for s in by_key.values():
        noise = by_key.get((s.recipe, s.bits, "noise"))
        if s.calibration == "synthesized" and noise:
            yield s, noise


def _comparisons(found, labelled) -> list[str]:
    parts = []
    for synthesized, noise in _pairs(found, labelled):
        relation = _relation(_figure(synthesized, labelled), _figure(noise, labelled))
        several = len({s.recipe for s in found}) > 1
        recipe = f" ({one_line(synthesized.recipe)})" if several else ""
        figure = _figure(synthesized, labelled).mean
        parts.append(f"at {one_line(synthesized.bits)}{recipe} {relation} ({figure:.2f} %)")
    measure = "top-1" if labelled else "agreement with the float model"
    return [f"calibrated on synthesized images, {measure} came out {', '.join(parts)}"] if parts else []


def _relation(synthesized: Spread, noise: Spread) -> str:
    difference = synthesized.mean - noise.mean
    if round(abs(difference), 2) == 0:
        return "level with noise"
    relation = f"{abs(difference):.2f} points {'above' if difference > 0 else 'below'} noise"
    deviations = [spread.deviation for spread in (synthesized, noise) if spread.deviation is not None]
    # Two standard deviations of the difference: less may be chance.
    chance = 2 * sum(deviation**2 for deviation in deviations) ** 0.5
    return relation + (", within the spread of seeds" if deviations and abs(difference) <= chance else "")


def _plain(found, labelled) -> list[str]:
    """Where synthesized and noise cannot be compared: the best setting and its figure."""
    measured = [s for s in found if _figure(s, labelled)]
    if not measured:
        return [f"{len(found)} settings were quantized, none has a figure"]
    best = max(measured, key=lambda s: _figure(s, labelled).mean)
    measure = "top-1" if labelled else "agreement with the float model"
    where = f"{one_line(best.bits)} calibrated on {one_line(best.calibration)} images"
    return [f"the best {measure} is {_figure(best, labelled).mean:.2f} %, {where}"]


def _meaning(found, labelled) -> list[str]:
    pairs = list(_pairs(found, labelled))
    if not pairs:
        return []

    def points_lost(setting):
        if labelled:
            return setting.lost.mean if setting.lost else None
        return 100 - setting.agreement.mean

    noise_lost = [points_lost(noise) for _, noise in pairs]
    if None in noise_lost:
        return []
    worst = max(noise_lost)
    points = "points" if labelled else "points of agreement"
    if worst < COLLAPSE:
        return [
            f"noise loses at most {max(worst, 0):.1f} {points} on this model and does not collapse as it "
            "does on DeiT in the paper, so this shows that the job works without data, not what synthesized "
            "images are worth"
        ]
    collapsed = [(s, lost) for (s, _), lost in zip(pairs, noise_lost, strict=True) if lost >= COLLAPSE]
    gains = [lost - points_lost(s) for s, lost in collapsed]
    if min(gains) > 0:
        return [
            f"noise loses up to {worst:.1f} {points} here, as in the paper, and synthesized images win back "
            f"{min(gains):.1f}" + (f" to {max(gains):.1f}" if len(gains) > 1 else "") + " of them"
        ]
    return [f"noise loses up to {worst:.1f} {points} here, and synthesized images do not everywhere do better"]


def _limits(found, labelled) -> list[str]:
    limits = []
    if max(len(s.seeds) for s in found) <= 1:
        limits.append("it is one seed, and another may move each figure by a point")
    if not labelled:
        limits.append("without labels agreement tells how alike the two models are, not how right they are")
    return limits
