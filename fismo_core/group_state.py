"""The state of a parameter group, whichever rule it has; made afresh, or from a saved state."""

from collections.abc import Mapping, Sequence
from typing import Any

from fismo_core.groups import Group, check_options, from_plain_group
from fismo_core.moments import Moments
from fismo_core.placement import Placement
from fismo_core.stacks import Entry, MatrixStacks

__all__ = ["GroupState", "read_state", "state_of"]

GroupState = MatrixStacks | Moments


def state_of(
    group: Group, placement: Placement, saved: Sequence[tuple[Entry, str]], *, complete: bool = False
) -> GroupState:
    """The state of a group, from what there is of it.

    Args:
        group: the group.
        placement: of the group.
        saved: for each parameter its entry, and what messages call it; what is missing there starts afresh.
        complete: nothing may be missing.

    Raises:
        ValueError: if something is missing in `saved`, or has another shape.
    """
    kind = MatrixStacks if group["rule"] == "matrix" else Moments
    return kind(group, placement, saved, complete=complete)


def read_state(
    state_dict: Mapping[str, Any], own_groups: Sequence[Group], placements: Sequence[Placement]
) -> tuple[list[Group], list[GroupState]]:
    """A saved state's groups, and the state of each, copied.

    Args:
        state_dict: what `FISMO.state_dict` gave.
        own_groups: those of the optimizer that loads it; they are not changed.
        placements: of these.

    Raises:
        ValueError: if groups, parameters, or shapes do not fit, or entries are missing.
    """
    saved_groups, saved = state_dict["param_groups"], state_dict["state"]
    if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in own_groups]:
        raise ValueError("the state has other parameter groups than the optimizer")
    groups: list[Group] = []
    states: list[GroupState] = []
    for index, (own, plain) in enumerate(zip(own_groups, saved_groups, strict=True)):
        if plain.get("rule") != own["rule"] or plain.get("layouts") != own.get("layouts"):
            raise ValueError(f"parameter group {index} of the state was treated by other rules than the optimizer's")
        groups.append(from_plain_group(plain, own))
        check_options(groups[-1])
        entries = [(saved.get(key, {}), f"parameter {key}") for key in plain["params"]]
        states.append(state_of({**groups[-1], "params": own["params"]}, placements[index], entries, complete=True))
    return groups, states
