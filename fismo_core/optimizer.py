"""The FISMO optimizer: a `torch.optim.Optimizer` around `update.py` (matrices) and torch's AdamW (the rest)."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from fismo_core.arithmetic import PolarFunction
from fismo_core.checked import to_plain
from fismo_core.config import (
    PAPER,
    AdamW,
    ComputeDtype,
    Economy,
    FisherMetric,
    FismoOptions,
    Polar,
    PolarMethod,
    Rule,
    Scale,
)
from fismo_core.dtensors import local_part
from fismo_core.economy import ASSUMED_ROWS
from fismo_core.group_state import GroupState, read_state, state_of
from fismo_core.groups import (
    Group,
    completed,
    described,
    economy_notes,
    names_of,
    one_rate_warning,
    requested_groups,
    settle,
    to_plain_group,
)
from fismo_core.placement import Placement, placement_of, ranks_of
from fismo_core.plan import Plan, plan_of_groups
from fismo_core.ranks import Ranks
from fismo_core.stacks import Entry, MatrixStacks, Stack

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["FISMO"]

_DEFAULT = FismoOptions()


class FISMO(Optimizer):
    """Fisher-structured momentum-orthogonalized optimizer: Muon in the metric of a Kronecker-factored Fisher matrix.

    For each hidden matrix W (m x n) with gradient G it keeps momentum M and Fisher factors P (m x m), Q (n x n), and
    steps along D = P^-p Polar(P^-p M Q^-p) Q^-p, the exact minimiser of <M, D> over the trust region
    ||P^p D Q^p||_2 <= 1. p = 1/2 is the paper's metric, p = 0 is Muon. All other parameters are treated by AdamW.

    Source: Xu, Yan, Zhang, "FISMO: Fisher-Structured Momentum-Orthogonalized Optimizer" (2026), arXiv 2601.21750. The
    defaults are not the paper's: see docs/algorithm.md for what was changed and measured; `FISMO.paper` is the
    published form.

    Example:
        >>> optimizer = FISMO(model, lr=0.02)
        >>> print(optimizer.plan())
        >>> loss.backward()
        >>> optimizer.step()

    Args:
        params: the model: its hidden matrices are found by what its modules are. Or `model.named_parameters()`: by
            names and shapes. Or the groups that `split_parameters(model)` returns. Also parameters of two or more
            dimensions, or groups of them: all of these are matrices (convolutions flattened), since nothing else is
            known of them. A group with `rule="adamw"` is treated by AdamW.
        lr: as all options up to `adamw`, and `compute_dtype`, a field of `FismoOptions`, where each is explained. Per
            group, like any option, and scheduled, like any learning rate. Given a model or names, what weight decay
            should leave alone (`undecayed_parameters`) does not decay.
        polar: a `Polar`, the name of its method, or a function from matrices `(B, m, n)` to their polar factors.
        rules: regular expressions on names, and who treats what they match (`matrix`, `adamw`); the first match wins.
            For a model or names only.
        maximize: ascend.
        process_group: ranks that share the work out, on which gradients are the same, as under DDP: each matrix, and
            each parameter of AdamW's, has an owner that alone keeps its state and computes its step, and sends the new
            values to the others. Steps, `skipped_gradients` and `full_state_dict` are then calls that all ranks make
            together. None: every process does all of the work; but parameters that FSDP2 (`fully_shard`) has sharded
            bring their group along: gradients of a matrix go to its owner, and its step comes back.
        rows_per_step: how many rows a step multiplies by each matrix, in all processes together: the tokens of a text
            batch, the patches of all images of a batch. By it, and by the matrices, `economy="auto"` is decided, once
            and for all, when parameters are added. None: 16,384.

    Raises:
        ValueError: an argument out of range, or a parameter that cannot be a matrix.
        TypeError: a complex or integer parameter.

    A parameter without a gradient is left alone, its state included. A matrix with a non-finite gradient is neither
    stepped nor decayed and its state stays clean; `skipped_gradients` counts these. (AdamW's parameters have no such
    guard, as in torch.) `p.grad` is never changed. Momentum and factors are float32, of float64 parameters float64. An
    `lr` that is a tensor should live on the CPU. `radius_scale` of a group of matrices, 1 at first, may be changed at
    any time: it multiplies the trust radius, but not the weight decay.
    """

    def __init__(
        self,
        params: nn.Module | ParamsT,
        lr: float = _DEFAULT.lr,
        *,
        momentum: float = _DEFAULT.momentum,
        nesterov: bool = _DEFAULT.nesterov,
        weight_decay: float = _DEFAULT.weight_decay,
        cautious: bool = _DEFAULT.cautious,
        metric: FisherMetric = _DEFAULT.metric,
        economy: Economy = _DEFAULT.economy,
        polar: Polar | PolarMethod | PolarFunction = _DEFAULT.polar,
        scale: Scale = _DEFAULT.scale,
        graft: bool = _DEFAULT.graft,
        adamw: AdamW = _DEFAULT.adamw,
        rules: Mapping[str, Rule] | None = None,
        compute_dtype: ComputeDtype = _DEFAULT.compute_dtype,
        maximize: bool = False,
        process_group: "ProcessGroup | None" = None,
        rows_per_step: float | None = None,
    ) -> None:
        if rows_per_step is not None and not rows_per_step > 0:
            raise ValueError(f"rows_per_step must be a positive number, got {rows_per_step!r}")
        self._rows = rows_per_step
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "cautious": cautious,
            "metric": metric,
            "economy": economy,
            "polar": polar,
            "scale": scale,
            "graft": graft,
            "compute_dtype": compute_dtype,
            "maximize": maximize,
            "radius_scale": 1.0,
        }
        self._adamw = adamw
        self._ranks = None if process_group is None else Ranks(process_group)
        self._placements: list[Placement] = []  # of each group
        self._states: list[GroupState] = []  # of each group
        decays: dict[Rule, float] = {"matrix": weight_decay, "adamw": adamw.weight_decay}
        groups, self._routes = requested_groups(params, rules, [rule for rule, decay in decays.items() if decay])
        self._given_rates: list[float] = []
        super().__init__(groups, defaults)

    @classmethod
    def of(
        cls,
        params: nn.Module | ParamsT,
        options: FismoOptions,
        *,
        rules: Mapping[str, Rule] | None = None,
        process_group: "ProcessGroup | None" = None,
        rows_per_step: float | None = None,
    ) -> "FISMO":
        """The optimizer with all its options in one value, such as `DENSE` or `replace(PAPER, lr=0.01)`."""
        return cls(params, **vars(options), rules=rules, process_group=process_group, rows_per_step=rows_per_step)

    @classmethod
    def paper(
        cls,
        params: nn.Module | ParamsT,
        lr: float = PAPER.lr,
        *,
        momentum: float = PAPER.momentum,
        damping: float = PAPER.metric.damping,
        decay: float = PAPER.metric.decay,
        polar: Polar = PAPER.polar,
        compute_dtype: ComputeDtype = PAPER.compute_dtype,
        rules: Mapping[str, Rule] | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> "FISMO":
        """The published algorithm to the letter: the options `PAPER`, of which those that it leaves open can be given.

        `lr` is its trust radius eta (with an exact polar factor every step has exactly this length in the metric),
        `damping` mu, `decay` gamma. A side longer than 8,192 keeps a diagonal factor here too.
        """
        metric = replace(PAPER.metric, damping=damping, decay=decay)
        options = replace(PAPER, lr=lr, momentum=momentum, metric=metric, polar=polar, compute_dtype=compute_dtype)
        return cls.of(params, options, rules=rules, process_group=process_group)

    # -- groups and state --------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters: a group of `split_parameters`, or any group of parameters of two or more dimensions.

        Parameters of the model that were frozen when the optimizer was made are treated by what they are there,
        matrices and others in a group each; they need no names.
        """
        named = "param_names" in self.param_groups[0] if self.param_groups else None
        for group in completed(param_group, self._routes, named=named):
            self._add(group)

    def _add(self, group: Group) -> None:
        rule = group["rule"]
        if rule not in ("matrix", "adamw"):
            raise ValueError(f"unknown rule {rule!r} of a parameter group; choose matrix or adamw")
        if rule == "adamw":
            group = {**to_plain(self._adamw), **group}
        super().add_param_group(group)
        index, group = len(self.param_groups) - 1, self.param_groups[-1]
        try:
            settle(group, self._rows or ASSUMED_ROWS)
            self._ranks = ranks_of(group["params"], self._ranks)
            self._placements.append(placement_of(group, self._ranks))
            self._allocate(index, group, [({}, name) for name in names_of(group)])
        except Exception:
            self.param_groups.pop()
            del self._placements[index:], self._states[index:]
            raise
        self._given_rates.append(float(group["lr"]))

    def _allocate(self, index: int, group: Group, saved: Sequence[tuple[Entry, str]]) -> None:
        """All state of a group at once, so that checkpoints are complete from the start; from what there is of it."""
        self._put(index, state_of(group, self._placements[index], saved))

    def _put(self, index: int, state: GroupState) -> None:
        """Make this the state of a group."""
        self._states[index : index + 1] = [state]
        # An entry for every parameter, empty where another rank has the state: whoever finds `state` empty (torch's
        # `get_optimizer_state_dict`) takes it for an optimizer that allocates in its first step, and takes one.
        self.state.update(zip(self.param_groups[index]["params"], state.entries, strict=True))

    def state_bytes(self) -> int:
        """Bytes of optimizer state in this process, both rules together."""
        tensors = [value for entry in self.state.values() for value in entry.values() if isinstance(value, Tensor)]
        return sum(local_part(tensor).numel() * tensor.element_size() for tensor in tensors)

    def skipped_gradients(self) -> int:
        """How many matrix gradients so far were non-finite and skipped. Synchronises with the device."""
        skipped = sum(int(stack.tensors["skipped"].sum()) for _, stack in self.stacks())
        if self._ranks is None:
            return skipped
        return self._ranks.total(skipped, self.param_groups[0]["params"][0].device)

    def stacks(self) -> Iterator[tuple[Group, Stack]]:
        """The stacked states of matrices in this process, each with its group; for measurements between steps."""
        for group, state in zip(self.param_groups, self._states, strict=True):
            if isinstance(state, MatrixStacks):
                yield from ((group, stack) for stack in state.stacks)

    def plan(self) -> Plan:
        """Which parameter is treated by whom, and why, and what the metric costs; print it for a table."""
        return replace(plan_of_groups(self.param_groups), notes=economy_notes(self.param_groups, self._rows))

    def __repr__(self) -> str:
        return "\n".join(["FISMO(", *(f"  {described(group)}" for group in self.param_groups), ")"])

    # -- the step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One optimization step.

        Args:
            closure: re-evaluates the model and returns the loss, as for any torch optimizer.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a sparse gradient, or roots of a Fisher factor that failed in ten refreshes on end.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update_parameters()
        return loss

    # Not `step` itself: torch.compile of a bound method finds the function under this, and calls it without `self`.
    @torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
        reason="FISMO's step decides by its state what to compute"
    )
    def _update_parameters(self) -> None:
        self._check_rates()
        for index, group in enumerate(self.param_groups):
            parameters = group["params"]
            if any(p.grad is not None and p.grad.is_sparse for p in parameters):
                raise RuntimeError("FISMO does not support sparse gradients; use nn.Embedding(sparse=False)")
            entries = [self.state[parameter] for parameter in parameters]
            if not self._states[index].fits(parameters, entries):
                self._allocate(index, group, list(zip(entries, names_of(group), strict=True)))
                entries = self._states[index].entries
            self._states[index].step(group, self._placements[index], entries)
        for placement in self._placements:
            placement.publish()
        if self._ranks is not None:
            self._ranks.exchange_published()

    def _check_rates(self) -> None:
        """Warn, once, if groups that were given unlike learning rates have one now."""
        message = one_rate_warning(self._given_rates, [group["lr"] for group in self.param_groups])
        if message:
            self._given_rates = []
            warnings.warn(message, stacklevel=3)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State by parameter, as torch's optimizers give it, independent of how matrices were stacked.

        A matrix parameter's entries are named `momentum.0`, `P.0`, ...: the number is the matrix within the parameter.
        All of it is in memory of its own: later steps do not change what was given.
        """
        result = super().state_dict()
        state = {
            key: {name: value.clone() if isinstance(value, Tensor) else value for name, value in entry.items()}
            for key, entry in result["state"].items()
        }
        groups = [copy.deepcopy(to_plain_group(group)) for group in result["param_groups"]]
        return {**result, "state": state, "param_groups": groups}

    def full_state_dict(self) -> dict[str, Any] | None:
        """What `state_dict` would give if this process had all of the state: for one checkpoint by all ranks.

        All ranks of the process group call it together; the first one gets it, on the CPU, the others None. Any
        number of ranks can load it: each takes what it owns.
        """
        own = self.state_dict()
        if self._ranks is None:
            return own
        state = self._ranks.merged_on_first(own["state"])
        return None if state is None else {**own, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, bit for bit: state keeps its own dtype whatever the parameter's is.

        Raises:
            ValueError: if groups, parameters, or shapes do not fit, or entries are missing. Nothing is changed then.
        """
        loaded: list[GroupState] = []

        # torch would cast floating-point state to the parameter's dtype (pytorch issue 43706), which loses the float32
        # state of bfloat16 models. So torch loads the groups; the tensors are taken after all other hooks that come
        # before, and put in place before those that come after.
        def take_out(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            groups, states = read_state(given, self.param_groups, self._placements)
            loaded.extend(states)
            return {**given, "param_groups": groups, "state": {}}

        def put_in_place(_: Optimizer) -> None:
            for index, state in enumerate(loaded):
                self._put(index, state)

        hooks = (
            self.register_load_state_dict_pre_hook(take_out),
            self.register_load_state_dict_post_hook(put_in_place, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        if self._ranks is not None:
            raise RuntimeError("an optimizer that shares its work with other ranks cannot be copied or pickled")
        own = {key: self.__dict__[key] for key in ("_adamw", "_routes", "_rows", "_given_rates")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_adamw" not in state:  # `load_state_dict` sets groups and state in this way
            return
        self._ranks, self._states = None, []
        self._placements = [placement_of(group, None) for group in self.param_groups]
        for index, group in enumerate(self.param_groups):
            entries = [self.state[parameter] for parameter in group["params"]]
            self._allocate(index, group, list(zip(entries, names_of(group), strict=True)))
