"""What three models show, in words: one line per question, then what the numbers do not show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from graddiag.analyzers import AnswerChange, Direction, LayerRetention, RefusalDirection, SubspaceOverlap
from graddiag.erosion_findings import Erosion, Refusals
from graddiag.erosion_removal import Effect, Removal
from graddiag.erosion_rules import (
    SAFETY_RULES,
    WAY_RULES,
    Moved,
    Shared,
    Way,
    judge_move,
    judge_overlap,
    judge_way,
    paid,
    turned,
    worst_layer,
)
from graddiag.erosion_setting import ALIGNED, BASE, TUNED
from graddiag.removal_rules import Removed, judge_removal
from graddiag.rules import FEW_CLUSTERS, Rule
from graddiag.statistics import LEVEL, Estimate, mean
from graddiag.text import chance, interval, number, visible
from graddiag.weight_table import Product, WeightChanges

NAME_LENGTH = 32  # characters of a name in a line
_UNDEFINED = Estimate(math.nan)
_BACK = "aligned - base", "back", "further on"  # a direction, and what an update below and above 0 along it does
_RAISED = "minus the safety gradient", "raise it", "lower it"


@dataclass(frozen=True)
class Answer:
    """One question with the word that the rules give, and the numbers behind it."""

    question: str
    word: str
    numbers: str

    @property
    def line(self) -> str:
        """As one sentence."""
        return f"{self.question}: {self.word} ({self.numbers})."


def answers(found: Erosion) -> tuple[Answer, ...]:
    """The questions that the models and sets of the run allow, each with its word."""
    out = [_behaviour(found)] if found.behaviour else []
    out += [_refusals(found.refusals)] if found.refusals else []
    out += [_retention(found, found.direction), _depth(found, found.direction)] if found.direction else []
    out += [_refusal_direction(found.refusal_direction)] if found.refusal_direction else []
    out += [_subspace(found.subspace)] if found.subspace else []
    out += [_removal(found.removal)] if found.removal else []
    out += [_way_back(found.weights)] if found.weights and BASE in found.setting.models else []
    out += [_on_safe_answers(found.weights, found.safe_answers)] if found.weights and found.safe_answers else []
    return tuple(out)


def erosion_verdict(found: Erosion) -> list[str]:
    """What was compared, one line per question, and limits; brackets hold 95 % intervals."""
    generated = [] if found.samples is None else [found.samples.line]
    return [_first(found), *(a.line for a in answers(found)), *generated, *_limits(found)]


def _first(found: Erosion) -> str:
    models = {role: _name(name) for role, name in found.setting.models.items()}
    base = f"; base: {models[BASE]}" if BASE in models else ""
    parts = ", ".join(f"{part} = {_name(name)}" for part, name in found.setting.parts.items()) or "none"
    return f"{models[TUNED]} (tuned) against {models[ALIGNED]} (aligned){base}. Sets: {parts}."


def _behaviour(found: Erosion) -> Answer:
    assert found.behaviour is not None
    b = found.behaviour
    others = {name: one.interaction for name, one in found.beside.items()}
    moved = Moved(b.harmful.change, (b.interaction, *others.values()))
    beside = "".join(f", than of {_name(name)} {_shown(e)}" for name, e in others.items())
    numbers = (
        f"log-probability of harmful answers {_shown(b.harmful.change)} nats/token, of {_name(b.benign.name)} "
        f"{_interval(b.benign.change)}; harmful more than of {_name(b.benign.name)} {_shown(b.interaction)}{beside}"
    )
    return _answer(f"Harmful answers ({_name(b.harmful.name)}) are more likely", moved, numbers)


def _refusals(found: Refusals) -> Answer:
    change = found.harmful.change
    moved = Moved(turned(change), () if found.benign is None else (turned(found.beyond),))
    levels = f"{_interval(found.harmful.aligned)} to {_interval(found.harmful.tuned)}"
    numbers = f"log-odds of refusing from {levels} nats, changed by {_shown(change)}"
    if found.benign is not None:
        numbers += f", after harmless requests by {_interval(found.benign.change)}; beyond that {_shown(found.beyond)}"
    return _answer("Harmful requests are refused less", moved, numbers)


def _retention(every: Erosion, found: Direction) -> Answer:
    question = "The alignment direction is lost"
    by_layer = {at.layer: at for at in found.whole.layers}
    worst = worst_layer((layer, e) for layer, e in zip(by_layer, found.contrast, strict=True))
    if worst is None:
        return _answer(question, _without_control(found), _measurable(found))
    layer, beyond = worst
    at = by_layer[layer]
    others = {name: _at_layer(one, layer) for name, one in every.direction_beside.items()}
    moved = Moved(_lost(at), (turned(beyond), *(turned(e) for e in others.values())), at.random_p)
    beside = "".join(f", minus that on {_name(name)} {_shown(e)}" for name, e in others.items())
    numbers = (
        f"retention {_interval(at.retention)} at layer {layer}, minus that on {_name(_control(found))} "
        f"{_shown(beyond)} over layers{beside}; {chance(at.random_p)} against random directions; {_measurable(found)}"
    )
    return _answer(question, moved, numbers)


def _at_layer(found: Direction, layer: int) -> Estimate:
    """The contrast with this control at a layer, its p times the layers that have one, as for the first control."""
    (e,) = (e for at, e in zip(found.whole.layers, found.contrast, strict=True) if at.layer == layer)
    return paid(e, sum(math.isfinite(other.p) for other in found.contrast))


def _without_control(found: Direction) -> Moved:
    """The least retention that has an interval, where there is nothing to compare it with."""
    known = [_lost(at) for at in found.whole.layers if math.isfinite(at.retention.low)]
    return Moved(max(known, key=lambda e: e.value, default=_UNDEFINED))


def _lost(at: LayerRetention) -> Estimate:
    e = turned(at.retention)
    return replace(e, value=1 + e.value, low=1 + e.low, high=1 + e.high)


def _measurable(found: Direction) -> str:
    n = sum(math.isfinite(at.retention.value) for at in found.whole.layers)
    return f"measurable in {n} of {len(found.whole.layers)} layers"


def _control(found: Direction) -> str:
    return found.control.name if found.control else "nothing"


def _depth(every: Erosion, found: Direction) -> Answer:
    question = "That loss grows with depth"
    controls = {found.control.name: found} if found.control else {}
    trends = {name: one.depth_trend for name, one in (controls | dict(every.direction_beside)).items()}
    numbers = f"slope of retention {_interval(found.whole.slope)} per layer"
    numbers += "".join(f", beyond that on {_name(name)} {_shown(e)}" for name, e in trends.items())
    if not any(_lost(at).low > 0 for at in found.whole.layers):
        return _answer(question, Moved(_UNDEFINED), f"no layer is known to have lost any; {numbers}")
    return _answer(question, Moved(turned(found.whole.slope), tuple(map(turned, trends.values()))), numbers)


def _refusal_direction(found: RefusalDirection) -> Answer:
    question = "Harmful and harmless prompts lie closer along the refusal direction"
    worst = worst_layer((at.layer, at.drift) for at in found.layers)
    if worst is None:
        return _answer(question, Moved(_UNDEFINED), f"in none of {len(found.layers)} layers")
    layer, drift = worst
    at = next(r for r in found.layers if r.layer == layer)
    numbers = (
        f"drift {_shown(drift)} over layers at layer {layer}, where harmful prompts moved {_interval(at.harmful)} and "
        f"harmless ones {_interval(at.harmless)}; cosine of the two directions {_interval(at.cosine)}"
    )
    return _answer(question, Moved(turned(drift), (turned(drift),)), numbers)


def _subspace(found: SubspaceOverlap) -> Answer:
    scope = found.overall
    rule = judge_overlap(
        Shared(scope.overlap.value, scope.matching.p, tuple(c.beyond for c in scope.controls.values()))
    )
    numbers = f"overlap {_interval(scope.overlap)}, under chance matchings {scope.matching.mean:.2f}"
    numbers += f", {chance(scope.matching.p)}"
    for name, c in scope.controls.items():
        numbers += f"; beyond that of {_name(name)} {_shown(c.beyond)}"
    a, b = (_name(n) for n in found.names)
    return Answer(f"{a} and {b} move along the same directions", rule.word, numbers)


def _removal(found: Removal) -> Answer:
    question = "Without what these shifts share, harmful answers change"
    beyond = tuple(e.change for e in found.beyond.values())
    rule = judge_removal(Removed(found.harmful.change, beyond, found.random_p, found.least_p))
    change = _shown(found.harmful.change, "nats/token")
    numbers = f"{found.setting.where} log-probability of {_name(found.name)} {change}"
    for name, e in found.beyond.items():
        numbers += f"; beyond that of {_name(name)} {_shown(e.change)}, random subspaces {_drawn(e)}"
    n = found.setting.n_random
    numbers += f"; {n} of each kind allow no p below {found.least_p:.2g}; intervals and p take the fit as given"
    return Answer(question, rule.word, numbers)


def _drawn(e: Effect) -> str:
    """What random subspaces give, uniform ones and such as are drawn like the states."""
    found = {"random": "uniform", "states": "like the states"}
    return " and ".join(f"{mean(getattr(e, k)):+.3f} ({name}, {chance(e.p(k))})" for k, name in found.items())


def _way_back(found: WeightChanges) -> Answer:
    """The parts of single blocks are counted, since one large block can decide the cosine of all as one vector."""
    word, numbers = _way(found.overall.alignment, [c.alignment for c in found.blocks.values()], WAY_RULES, _BACK)
    numbers += f"; it covers {number(found.overall.back)} of the way aligned - base, and -1 would be back at the base"
    return Answer("The update of the weights goes back towards the base", word, numbers)


def _on_safe_answers(found: WeightChanges, answers: AnswerChange) -> Answer:
    """What the gradient says of the loss beside what the loss did: an update is no small step."""
    word, numbers = _way(found.overall.safety, [c.safety for c in found.blocks.values()], SAFETY_RULES, _RAISED)
    numbers += (
        f"; loss on {_name(answers.name)} {number(found.overall.safety_change)} nats/token to first order in these "
        f"blocks, {_interval(turned(answers.change))} as measured"
    )
    return Answer("The update changes the loss on safe answers to first order", word, numbers)


def _way(
    whole: Product | None, blocks: Sequence[Product | None], rules: Sequence[Rule[Way]], said: tuple[str, str, str]
) -> tuple[str, str]:
    """The word of all blocks as one vector and the numbers, with how many blocks have each of the last two words."""
    whole, parts = whole or Product(), [p for p in blocks if p is not None]
    words = [judge_way(Way(p.cosine, p.chance_sd), rules) for p in parts]
    below, above = (sum(w is r for w in words) for r in rules[-2:])
    numbers = (
        f"cosine with {said[0]} {number(whole.cosine)}, sd {whole.chance_sd:.1g} by chance; of {len(parts)} blocks "
        f"{below} {said[1]} and {above} {said[2]}, {(1 - LEVEL) * len(parts):.1f} in all by chance"
    )
    return judge_way(Way(whole.cosine, whole.chance_sd), rules).word, numbers


def _answer(question: str, moved: Moved, numbers: str) -> Answer:
    return Answer(question, judge_move(moved).word, numbers)


def _limits(found: Erosion) -> list[str]:
    said = []
    clusters = [b.clusters for b in (found.behaviour.harmful, found.behaviour.benign)] if found.behaviour else []
    counts = [len(set(c.tolist())) for c in clusters]
    if counts and min(counts) < FEW_CLUSTERS:
        said.append(f"Few clusters ({min(counts)}): intervals and p are rough.")
    if BASE not in found.setting.models:
        said.append("No base model: nothing is said about the alignment direction.")
    return [*said, "All given these rows. No difference found is not none; nothing here judges generated answers."]


def _shown(e: Estimate, unit: str = "") -> str:
    return f"{_interval(e)}{unit and ' '}{unit}, {chance(e.p)}"


def _interval(e: Estimate) -> str:
    return interval(e.value, e.low, e.high)


def _name(name: str) -> str:
    return visible(name, limit=NAME_LENGTH)
