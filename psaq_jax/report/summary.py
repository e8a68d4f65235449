"""One honest sentence about the figures: what they show, and what not."""

from psaq_jax.report.settings import Setting, Spread, image_count, settings
from psaq_jax.text_tables import one_line

# The paper's ablation: calibrated on Gaussian noise, DeiT loses tens of points; less is no collapse.
COLLAPSE = 10.0  # points of top-1
MOST = 4  # settings that a sentence tells one by one
FEW = 1000  # images; of more, one moves no figure by a tenth of a point


def summary_line(results: dict) -> str:
    """What the figures show and what they don't, in one sentence that is worded from the numbers.

    It says how synthesized calibration came out against noise for each setting, or of many for the worst and the best,
    whether noise collapsed as it does on DeiT in the paper (at least 10 points of top-1 below real images, or without
    these below synthesized ones), so whether the run tells what synthesized images are worth, and where a single seed,
    few images or missing labels limit it.
    """
    found = settings(results)
    made = results.get("synthesis")
    if not found and made:
        return f"{made['num_images']:,} images were made by {made['iterations']:,} iterations; nothing was quantized."
    if not found:
        return "Nothing was quantized in this run, so it shows nothing yet."
    labelled = any(s.top1 for s in found)
    clauses = _comparisons(found, labelled) or _plain(found, labelled)
    limits = _limits(found, labelled, image_count(results)) + _calibrations(results) + skipped(results)
    sentence = "; ".join([*clauses, *_meaning(found), *limits]) + "."
    return sentence[0].upper() + sentence[1:]


def skipped(results: dict) -> list[str]:
    """How many images of the results were broken, in words; nothing where none was."""
    count = len(results.get("skipped") or ()) or (results.get("evaluated_on") or {}).get("skipped", 0)
    return [f"{count} broken image{'s were' if count > 1 else ' was'} skipped"] if count else []


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
    pairs = [(_figure(s, labelled), _figure(noise, labelled), s) for s, noise in _pairs(found, labelled)]
    if not pairs:
        return []

    def part(synthesized, noise, setting):
        where = f"{one_line(setting.bits)}{_recipe(setting, found)}"
        return f"at {where} {_relation(synthesized, noise)} ({synthesized.mean:.2f} %)"

    told = ", ".join(part(*pair) for pair in pairs)
    if len(pairs) > MOST:
        pairs.sort(key=lambda pair: pair[0].mean - pair[1].mean)
        told = f"worst {part(*pairs[0])} and best {part(*pairs[-1])}, of {len(pairs)} settings"
    measure = "top-1" if labelled else "agreement with the float model"
    return [f"calibrated on synthesized images, {measure} came out {told}"]


def _recipe(setting: Setting, found) -> str:
    """Its name, where there are several."""
    return f" ({one_line(setting.recipe)})" if len({s.recipe for s in found}) > 1 else ""


def _relation(synthesized: Spread, noise: Spread) -> str:
    difference = synthesized.mean - noise.mean
    if round(abs(difference), 2) == 0:
        return "level with noise"
    relation = f"{abs(difference):.2f} points {'above' if difference > 0 else 'below'} noise"
    return relation + (", within the spread of seeds" if _may_be_chance(synthesized, noise) else "")


def _may_be_chance(one: Spread, other: Spread) -> bool:
    """Whether two figures differ by no more than two standard deviations of one seed's difference, where these are
    known: what single runs may turn round. Between means over several seeds such a difference is less often chance.
    """
    deviations = [spread.deviation for spread in (one, other) if spread.deviation is not None]
    return bool(deviations) and abs(one.mean - other.mean) <= 2 * sum(d**2 for d in deviations) ** 0.5


def _plain(found, labelled) -> list[str]:
    """Where synthesized and noise cannot be compared: the best setting and its figure."""
    measured = [s for s in found if _figure(s, labelled)]
    if not measured:
        return ["nothing that was quantized has a figure"]
    best = max(measured, key=lambda s: _figure(s, labelled).mean)
    measure = "top-1" if labelled else "agreement with the float model"
    where = f"{one_line(best.bits)}{_recipe(best, found)} calibrated on {one_line(best.calibration)} images"
    return [f"the best {measure} is {_figure(best, labelled).mean:.2f} %, {where}"]


def _meaning(found) -> list[str]:
    """What labels say noise loses beyond what few bits do to real images' calibration, and what is won back of it."""
    real = {(s.recipe, s.bits): s for s in found if s.calibration == "real" and s.top1}
    pairs = list(_pairs(found, True))
    if not pairs:
        return []
    yardsticks = [real.get((s.recipe, s.bits), s) for s, _ in pairs]
    triples = [(s.top1, noise.top1, of.top1) for (s, noise), of in zip(pairs, yardsticks, strict=True)]
    excess = [measure.mean - noise.mean for _, noise, measure in triples]
    measures = sorted({of.calibration for of in yardsticks})
    than = f"more than {' or '.join(measures)} images do"
    if max(excess) < COLLAPSE:
        most = max((of.lost.mean for of in yardsticks if of.lost), default=0.0)
        if measures == ["synthesized"] and any(noise.lost and noise.lost.mean >= COLLAPSE for _, noise in pairs):
            return ["noise loses much and synthesized images no less, and only real ones would tell what few bits cost"]
        if most >= COLLAPSE:
            return [
                f"noise loses at most {max(*excess, 0):.1f} points {than}, and these lose up to {most:.1f} themselves, "
                "so this shows what few bits cost, not what synthesized images are worth"
            ]
        return [
            f"noise loses at most {max(*excess, 0):.1f} points {than} and does not collapse as it does on DeiT in the "
            "paper, so this shows that the job works without data, not what synthesized images are worth"
        ]
    collapse = f"noise loses up to {max(excess):.1f} points {than}, as in the paper"
    collapsed = [(s, noise, lost) for (s, noise, _), lost in zip(triples, excess, strict=True) if lost >= COLLAPSE]
    chance = any(_may_be_chance(s, noise) for s, noise, _ in collapsed)
    gains = sorted(min(s.mean - noise.mean, lost) for s, noise, lost in collapsed)
    if chance or gains[0] <= 0:
        beyond = " by more than the spread of seeds" if chance else ""
        return [f"{collapse}, and synthesized images do not everywhere do better{beyond}"]
    if measures == ["synthesized"]:
        return [collapse]
    won = " to ".join(dict.fromkeys(f"{gain:.1f}" for gain in (gains[0], gains[-1])))
    return [f"{collapse}, and synthesized images win back {won}"]


def _calibrations(results: dict) -> list[str]:
    """Where real images are fewer than synthesized ones, or those that are measured on."""
    used = {run.get("calibration") for run in results["runs"]}
    sets = {name: of for name, of in (results.get("calibrated_on") or {}).items() if name in used}
    real, most = sets.get("real"), max((of["images"] for of in sets.values()), default=0)
    few = [f"real images are {real['images']}, the others {most}"] if real and real["images"] < most else []
    seen = ["real images are of those measured on, which favours them"] if real and real["evaluated"] else []
    return few + seen


def _limits(found, labelled, images: int | None) -> list[str]:
    limits = []
    if max(len(s.seeds) for s in found) <= 1:
        limits.append("it is one seed, so the spread is unknown")
    if images and images < FEW:
        limits.append(f"of {images} images one is {100 / images:.1f} points")
    if not labelled:
        limits.append(
            "without labels agreement tells how alike the two models are, not how right they are, and measured on "
            "synthesized images it favours calibration on such"
        )
    return limits
