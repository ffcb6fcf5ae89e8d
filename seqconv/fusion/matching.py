"""Which nodes of a graph one fused call replaces, and why others stay as they are."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from seqconv.fusion.calls import FusedCall, FusedConcatenation, FusedRecurrent, Image, NormOptions, image_of
from seqconv.fusion.links import Link, is_shape_read, link_of
from seqconv.fusion.tracing import IN_PLACE

__all__ = ["Match", "compiled", "resolved", "rewrite"]

WORDS = {
    "conv1d": "Conv1d", "conv2d": "Conv2d", "embedding": "Embedding", "norm": "BatchNorm", "relu": "ReLU",
    "pool": "MaxPool1d", "pool2d": "MaxPool2d", "maximum": "global maximum",
}  # fmt: skip


STOP = "stop"
# What may return a tensor with the memory of the one it is given.
VIEWS = frozenset(
    ("getitem", "select", "narrow", "transpose", "swapaxes", "permute", "movedim", "t", "view", "view_as", "reshape",
     "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "chunk", "split", "unbind", "expand", "detach", "to")
)  # fmt: skip
WRITING = frozenset((*(getattr(operator, name) for name in IN_PLACE), operator.setitem, operator.delitem))
UNPOOLED = (1, 1, 0, 1, False)  # the options of a pool that takes every position as it is


class Match(NamedTuple):
    """What became of a convolution, or an RNN: ``name`` is its own, ``kind`` what stands together.

    ``reason`` is why it is not fused, or why what stands behind it is not.
    """

    name: str
    kind: str
    fused: bool
    reason: str


class Chain:
    """The nodes that one fused call replaces, from a convolution to its pool."""

    def __init__(self, conv: Link, image: Image | None) -> None:
        self.conv, self.image, self.steps = conv, image, [conv]
        self.norm: Link | None = None
        self.behind: Link | None = None  # a norm behind ReLU
        self.pool: Link | None = None
        self.embedding: Link | None = None
        self.front: list[fx.Node] = []  # the embedding, and what stands between it and the convolution
        self.has_relu, self.keepdim, self.squeezed = False, False, image is None
        self.rest = ""  # why what is behind its last step is not in it

    @property
    def last(self) -> fx.Node:
        return self.steps[-1].node

    @property
    def axes(self) -> int:
        """How many axes its activations have now."""
        return 3 if self.squeezed else 4

    def sequences(self) -> list[fx.Node]:
        """Return the nodes of activations ``(N, O, L)``."""
        nodes = [one.node for one in self.steps]
        places = [place for place, step in enumerate(self.steps) if step.kind == "squeeze"]
        return nodes if self.image is None else nodes[places[0] :] if places else []

    def match(self) -> Match:
        """Return what the report tells of it."""
        return Match(_name(self.conv), self.kind(), True, self.rest)

    def kind(self) -> str:
        """Return the steps' names."""
        steps = [self.embedding, *self.steps] if self.embedding else self.steps
        return " -> ".join(WORDS[step.kind] for step in steps if step.kind in WORDS)

    def nodes(self) -> set[fx.Node]:
        """Return all nodes that the call replaces, reads of the activations' shapes too."""
        found = {*self.front}
        for step in self.steps:
            found |= {step.node, *_back(step.node, self.conv.node)}
        for node in [*found]:
            found |= {one for one in _reads(node) if all(user in found for user in one.users)}
        return found


def rewrite(
    graph: fx.Graph, leaves: Mapping[str, nn.Module], root: Any, differentiable: bool
) -> tuple[fx.Graph, list[Match]]:
    """Put fused calls into a graph in the place of what they compute, and tell what was found, in order of the calls.

    ``leaves`` are the modules that the graph calls, by name, ``root`` what the graph takes attributes from, and
    ``differentiable`` tells whether gradients may be wanted.
    """
    for node in reversed([*graph.nodes]):
        if node.target is operator.getitem and not node.users:  # what a tuple was taken apart into, and is not wanted
            graph.erase_node(node)
    steps = {}
    for node in graph.nodes:
        if (step := link_of(node, leaves)) is not None:
            steps[step.node] = step
    matcher = _Matcher(graph, steps, differentiable)
    found = {node: matcher.match(step) for node, step in steps.items() if step.kind in ("conv1d", "conv2d")}
    layers = [step for step in steps.values() if step.kind == "recurrent"]
    reason = "its output is changed in place"
    layers = [one._replace(reason=one.reason or reason) if _is_changed(one, leaves) else one for one in layers]
    chains = [one for one in found.values() if isinstance(one, Chain)]
    matcher.find_tokens(chains)
    rest = {*chains}
    order = {node: number for number, node in enumerate(graph.nodes)}
    dead: set[fx.Node] = set()
    current: dict[Any, fx.Node] = {}  # what stands for a chain's last node now
    for cat, together in list(_concatenated(graph, chains)):
        first = min((one for chain in together for one in chain.front), key=order.__getitem__)
        nodes = {cat}.union(*(chain.nodes() for chain in together))
        if matcher.effect(first, cat, nodes, _several(together)[2]) is not None:
            continue
        _replace(graph, root, order, current, cat, cat, nodes, *_several(together))
        rest -= {*together}
        dead |= nodes
    for chain in chains:
        if chain in rest:
            nodes = chain.nodes()
            chain.keepdim = chain.keepdim and not matcher.take_squeeze(chain, nodes)
            contiguous = not all(matcher.reads_any_format(user, chains) for user in chain.last.users)
            made = _single(chain, contiguous)
            _replace(graph, root, order, current, chain.conv.node, chain.last, nodes, *made)
            dead |= nodes
    for layer in layers:
        if layer.reason is None:
            how = {"names": [_name(layer)], **{one: layer.options[one] for one in ("operation", "options")}}
            operands = [layer.source, layer.options["hx"], *layer.options["weights"]]
            node = layer.node
            _replace(graph, root, order, current, node, node, {node}, FusedRecurrent, how, operands)
            dead.add(node)
    for node in reversed([*graph.nodes]):
        if node in dead and not node.users:
            graph.erase_node(node)
    matches = {node: one.match() if isinstance(one, Chain) else one for node, one in found.items()}
    matches |= {one.node: Match(_name(one), one.options["of"], one.reason is None, one.reason or "") for one in layers}
    return graph, [matches[node] for node in sorted(matches, key=order.__getitem__)]


class _Matcher:
    def __init__(self, graph: fx.Graph, steps: dict[fx.Node, Link], differentiable: bool) -> None:
        self.graph, self.steps, self.differentiable = graph, steps, differentiable
        self.between = [*graph.nodes]
        self.order = {node: number for number, node in enumerate(self.between)}

    def match(self, conv: Link) -> Chain | Match:
        """Return the chain that begins with a convolution, or why there is none."""
        image = image_of(conv.options) if conv.kind == "conv2d" else None
        chain = Chain(conv, image)
        reason = conv.reason
        if conv.kind == "conv2d" and image is None:
            reason = reason or "a convolution along two axes"
        if reason is None:
            reason = self._follow(chain)
        if reason is None and chain.pool is None and conv.options.get("is_parametrized"):
            reason = "its parametrized weight would be computed twice where it is not served"
        if reason is None:
            reason = self._hazard(chain)
        if reason is None:
            return chain
        return Match(_name(conv), conv.options.get("of") or chain.kind(), False, reason)

    def _follow(self, chain: Chain) -> str | None:
        """Add the steps behind a convolution up to its pool; return why they are no fused call."""
        useful = before = 1
        while True:
            node = chain.last
            users = [one for one in node.users if not is_shape_read(one)]
            step = self._next(node, users)
            if step is None or (reason := self._take(chain, step)) is not None:
                break
            if step is chain.behind:
                before = useful
            chain.steps.append(step)
            if step.kind != "nothing":
                useful = len(chain.steps)
        reason = None if step is None else reason
        if chain.behind is not None and chain.pool is None:  # it stays
            useful, reason, chain.behind = before, "the norm stands behind ReLU, and no maximum behind it", None
        chain.rest = "" if reason in (None, STOP) or chain.pool is not None else f"behind it: {reason}"
        del chain.steps[useful:]
        if chain.has_relu:
            inner = {*(one.node for one in chain.steps[:-1]), *chain.nodes()} - {chain.last}
            if any(user not in chain.nodes() for one in inner - {*chain.front} for user in one.users):
                return "its activation is used elsewhere"
            return None
        if reason is not None:
            return reason
        if len(users) > 1:
            return "its activation is used elsewhere"
        behind = "" if not users else f", but {_describe(users[0])}"
        return f"no ReLU behind it{behind}"

    def _next(self, node: fx.Node, users: list[fx.Node]) -> Link | None:
        """Return what the only user of a node does."""
        if len(users) != 1:
            return None
        for step in (self.steps.get(users[0]), *(self.steps.get(one) for one in users[0].users)):
            if step is not None and step.source is node:
                return step
        return None

    def _take(self, chain: Chain, step: Link) -> str | None:
        """Let a chain have a step; return why it cannot."""
        if step.reason is not None and step.kind in ("norm", "relu", "pool", "pool2d", "maximum", "dropout", "nothing"):
            if step.kind == "dropout" and chain.pool is not None:
                return STOP
            return f"{WORDS.get(step.kind, 'dropout')}: {step.reason}"
        if step.kind == "nothing":
            return None
        if step.kind == "relu" and chain.behind is None:
            chain.has_relu = True
            return None
        if step.kind == "norm" and chain.pool is None and chain.norm is None and chain.behind is None:
            if step.options.get("axes", chain.axes) != chain.axes:
                return "a norm of other axes"
            if not chain.has_relu:
                chain.norm = step
                return None
            if step.options["training"]:
                return "the norm stands behind ReLU, and takes the statistics of the batch"
            chain.behind = step
            return None
        if step.kind == "squeeze" and chain.image and not chain.squeezed and chain.pool is None:
            chain.squeezed = step.options["dim"] in chain.image.squeezes
            return None if chain.squeezed else "an axis is removed that is none of its own"
        if chain.pool is None and step.kind in ("pool", "maximum") and chain.squeezed:
            of = step.options.get("of")
            if of is not None and of not in chain.sequences():
                return "the pool's size is the length of other data"
            if step.options.get("shared") and self.differentiable:
                return "amax shares gradients among equal values"
            chain.pool, chain.keepdim = step, step.kind == "maximum" and step.options["keepdim"]
            return None
        if chain.pool is None and step.kind == "pool2d" and chain.image and not chain.squeezed:
            if chain.image.pool(step.options) is None:
                return "a pool along two axes"
            chain.pool = step
            return None
        return f"{_describe(step.node)} behind it"

    def _hazard(self, chain: Chain) -> str | None:
        """Return what forbids to compute the end of a chain where its convolution stands."""
        if (reason := self.effect(chain.conv.node, chain.last, chain.nodes(), _given(chain))) is not None:
            return reason
        if any(self.order[one] > self.order[chain.conv.node] and one.op != "get_attr" for one in _operands(chain)):
            return "its parameters are computed behind it"
        if chain.norm is not None and chain.norm.options["training"]:
            key = _statistics(chain.norm)
            norms = (step for step in self.steps.values() if step.kind == "norm" and step.reason is None)
            if sum(_statistics(step) == key for step in norms) > 1:
                return "its norm is called more than once"
        return None

    def effect(self, first: fx.Node, last: fx.Node, nodes: set[fx.Node], operands: list[Any]) -> str | None:
        """Return what happens between two nodes of a graph that what is computed at once may not be moved across.

        Other parameters, buffers and inputs than the operands may be written to: but not parts of anything.
        """
        names = {str(one.target) if isinstance(one, fx.Node) else one for one in operands}
        for node in self.between[self.order[first] + 1 : self.order[last]]:
            if node in nodes:
                continue
            if _switches(node):
                return "gradients or autocast are switched in between"
            if not _writes(node):
                continue
            to: Any = node.args[0] if node.args else None
            if not isinstance(to, fx.Node) or to.op not in ("placeholder", "get_attr"):
                return "a tensor is written to in between"
            name = str(to.target)
            if name in names or name.rpartition(".")[0] in names:
                return "its parameters are written to in between"
        return None

    def find_tokens(self, chains: list[Chain]) -> None:
        """Let the chains over an embedding read its tokens, if nobody else wants the embedded rows."""
        fronts: dict[Chain, list[Link]] = {}
        for chain in chains:
            path, node = [], chain.conv.source
            while isinstance(node, fx.Node) and (step := self.steps.get(node)) is not None:
                path.append(step)
                if step.kind == "embedding":
                    break
                node = step.source
            kinds = [one.kind for one in path if one.kind != "nothing"]
            front = ["swap", "embedding"] if chain.image is None else ["unsqueeze", "embedding"]
            is_wide = chain.image is None or chain.image.is_wide
            live = chain.norm is not None and chain.norm.options["training"]
            is_plain = chain.pool is not None and not live and "pad" not in chain.conv.options
            if kinds != front or not is_plain or not is_wide or not _is_served(path[-1]):
                continue
            given = [path[-1].source, path[-1].options["weight"], *_given(chain)]
            is_calm = self.effect(path[-1].node, chain.last, chain.nodes(), given) is None
            if is_calm and all(one.kind != "unsqueeze" or one.options["dim"] in (1, -3) for one in path):
                fronts[chain] = path
        while True:  # a chain that must stay on rows makes its neighbours stay, too
            readers = {chain.conv.node for chain in fronts}
            between = {step.node for path in fronts.values() for step in path}
            kept = {
                chain: path
                for chain, path in fronts.items()
                if all(user in readers or user in between for step in path for user in step.node.users)
            }
            if len(kept) == len(fronts):
                break
            fronts = kept
        for chain, path in fronts.items():
            chain.embedding, chain.front = path[-1], [step.node for step in path]

    def take_squeeze(self, chain: Chain, nodes: set[fx.Node]) -> bool:
        """Let a chain remove the axis that its maximum keeps, if that is what comes next."""
        users = [*chain.last.users]
        step = self.steps.get(users[0]) if len(users) == 1 else None
        if step is None or step.kind != "squeeze" or step.options["dim"] not in (2, -1):
            return False
        chain.steps.append(step)
        nodes.add(step.node)
        return True

    def reads_any_format(self, user: fx.Node, chains: list[Chain]) -> bool:
        """Tell whether a user of a result takes it in any memory format: a fused call, or a transpose."""
        if any(user is chain.conv.node and chain.image is None for chain in chains):
            return True
        step = self.steps.get(user)
        return step is not None and step.kind == "swap" and all(
            (after := self.steps.get(one)) is not None and after.kind == "recurrent" for one in user.users
        )  # fmt: skip


def _single(chain: Chain, contiguous: bool) -> tuple[type[FusedCall], dict[str, Any], list[Any]]:
    """Return the stage of a chain, what it is made from, and its operands: nodes or attributes' names."""
    options, image, norm = chain.conv.options, chain.image, chain.norm or chain.behind
    pool: Any = None
    if chain.pool is None:
        pool = UNPOOLED
    elif chain.pool.kind == "pool":
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        pool = tuple(chain.pool.options[one] for one in names)
    elif chain.pool.kind == "pool2d":
        assert image is not None
        pool = image.pool(chain.pool.options)
    made = {
        "names": [_name(chain.conv)],
        "convolution": image.convolution(options) if image else _convolution(options),
        "pool": pool,
        "contiguous": contiguous,
        "keepdim": chain.keepdim,
        "image": image,
        "squeezed": chain.squeezed,
        "pad": options.get("pad"),
        "norm": _norm_options(norm.options) if norm else None,
        "is_behind": chain.behind is not None,
        "padding_idx": chain.embedding.options["padding_idx"] if chain.embedding else None,
        "of_tokens": chain.embedding is not None,
    }
    return FusedCall, made, _given(chain)


def _several(chains: list[Chain]) -> tuple[type[FusedConcatenation], dict[str, Any], list[Any]]:
    first = chains[0]
    assert first.embedding is not None
    convolution = first.image.convolution(first.conv.options) if first.image else _convolution(first.conv.options)
    made = {
        "names": [_name(chain.conv) for chain in chains],
        "convolution": convolution,
        "padding_idx": first.embedding.options["padding_idx"],
        "images": [chain.image for chain in chains],
    }
    weights = [chain.conv.options[name] for name in ("weight", "bias") for chain in chains]
    return FusedConcatenation, made, [*_given(first)[:2], *weights]


def _given(chain: Chain) -> list[Any]:
    if chain.embedding is not None:
        given = [chain.embedding.source, chain.embedding.options["weight"]]
    else:
        given = [chain.conv.source, None]
    given += [chain.conv.options["weight"], chain.conv.options["bias"]]
    if (norm := chain.norm or chain.behind) is not None:
        names = ("module",) if "module" in norm.options else ("running_mean", "running_var", "weight", "bias")
        given += [norm.options[one] for one in names]
    return given


def _norm_options(options: dict[str, Any]) -> NormOptions | str:
    if "module" in options:
        return "module"
    training = options["training"] or options["running_mean"] is None
    return NormOptions(training, options["momentum"], options["eps"])


def _operands(chain: Chain) -> set[fx.Node]:
    return {one for one in _given(chain) if isinstance(one, fx.Node)}


def _convolution(options: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(options[name] for name in ("stride", "padding", "dilation", "groups"))


def _concatenated(graph: fx.Graph, chains: list[Chain]) -> Iterator[tuple[fx.Node, list[Chain]]]:
    """Yield each concatenation of global maxima over one embedding, and the chains that it takes."""
    by_result: dict[fx.Node, Chain] = {}
    for chain in chains:
        if chain.embedding is None or chain.norm or chain.behind or chain.pool is None or chain.pool.kind != "maximum":
            continue
        result, users = chain.last, [*chain.last.users]
        if chain.keepdim:
            step = link_of(users[0], {}) if len(users) == 1 else None
            if step is None or step.kind != "squeeze" or step.options["dim"] not in (2, -1):
                continue
            result = users[0]
        if len(result.users) == 1:
            by_result[result] = chain
    for node in [*graph.nodes]:
        if node.target not in (torch.cat, torch.concat, torch.concatenate) or len(node.args) + len(node.kwargs) != 2:
            continue
        parts: Any = node.args[0] if node.args else ()
        if not isinstance(parts, (tuple, list)):
            continue
        if (node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")) not in (1, -1):
            continue
        together = [by_result[one] for one in parts if one in by_result]
        if len(together) < max(len(parts), 2):
            continue
        keys = {(*map(str, _given(one)[:2]), str(_several([one])[1] | {"images": (), "names": ()})) for one in together}
        if len(keys) == 1:
            for one, part in zip(together, parts, strict=True):
                if one.last is not part:
                    one.steps.append(Link("squeeze", part, one.last, {}))
            yield node, together


def _replace(
    graph: fx.Graph,
    root: Any,
    order: dict[fx.Node, int],
    current: dict[Any, fx.Node],
    where: fx.Node,
    last: fx.Node,
    nodes: set[fx.Node],
    kind: Any,
    made: dict[str, Any],
    operands: list[Any],
) -> None:
    """Put a stage in front of ``where`` and give its result to the users of ``last``."""
    plain, outside = _cut_out(nodes, last, order, root)
    stage = kind(plain, **made)
    with graph.inserting_before(where):
        names = [str(one.target) if isinstance(one, fx.Node) and one.op == "get_attr" else one for one in operands]
        given: list[Any] = [
            graph.get_attr(one) if isinstance(one, str) else fx.map_arg(one, lambda node: current.get(node, node))
            for one in names
        ]
        fused = graph.call_function(stage, (tuple(given), tuple(outside)))
    order[fused], current[last] = order[where], fused
    last.replace_all_uses_with(fused, delete_user_cb=lambda user: user not in nodes)


def _cut_out(nodes: set[fx.Node], last: fx.Node, order: dict[fx.Node, int], root: Any) -> tuple[Any, list[fx.Node]]:
    """Return a function of some nodes of a graph, and the nodes outside whose values it takes."""
    graph = fx.Graph()
    ordered = sorted(nodes, key=order.__getitem__)
    given = dict.fromkeys(one for node in ordered for one in node.all_input_nodes if one not in nodes)
    outside = [one for one in given if one.op != "get_attr"]
    copies = {one: graph.placeholder(f"given_{number}") for number, one in enumerate(outside)}
    copies |= {one: graph.get_attr(str(one.target)) for one in given if one.op == "get_attr"}
    for node in ordered:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last])
    return compiled(graph, root), outside


def compiled(graph: fx.Graph, root: Any) -> Any:
    """Return a graph as a function of its placeholders; attributes are read from ``root`` at every call."""
    code = graph.python_code("self")
    return _executed(code.src, dict(code.globals)).__get__(root)


def resolved(graph: fx.Graph, root: Any, known: Collection[nn.Module]) -> Any:
    """Return :func:`compiled` of a graph where the modules ``known`` stay what they are: they are not looked up."""
    graph, places = copy.deepcopy(graph), {}
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        path, _, name = str(node.target).rpartition(".")
        holder = operator.attrgetter(path)(root) if path else root
        held = holder if node.op == "get_attr" else getattr(holder, name)
        if held in known:
            places[node.name] = held, name
            node.target = f"{PLACE}{node.name}"
    code = graph.python_code("self")
    scope = dict(code.globals)

    def found(place: re.Match[str]) -> str:
        held, name = places[place[1]]
        scope[f"held_{place[1]}"] = held
        if place[0].endswith("("):
            return f"held_{place[1]}("
        if name in held._modules:
            scope[f"held_{place[1]}"] = held._modules[name]
            return f"held_{place[1]}"
        for tensors in (held._parameters, held._buffers):
            if name in tensors and name not in held.__dict__ and not hasattr(type(held), name):
                scope[f"held_{place[1]}"] = tensors
                return f"held_{place[1]}[{name!r}]"
        return f"getattr(held_{place[1]}, {name!r})"

    return _executed(re.sub(rf"\bself\.{PLACE}(\w+)\(?", found, code.src), scope).__get__(root)


def _executed(source: str, scope: dict[str, Any]) -> Any:
    exec(compile(source, "<seqconv.fusion>", "exec"), scope)
    return scope["forward"]


PLACE = "seqconv_place_of_"


def _back(node: fx.Node, stop: fx.Node) -> set[fx.Node]:
    """Return the nodes that make a node's other arguments out of the chain's own: sizes, and the pair of a maximum."""
    found: set[fx.Node] = set()
    waiting = [one for one in node.all_input_nodes if is_shape_read(one) or _is_part(one)]
    while waiting:
        one = waiting.pop()
        if one is not stop and one not in found:
            found.add(one)
            waiting += [before for before in one.all_input_nodes if is_shape_read(before) or _is_part(before)]
    return found


def _is_part(node: fx.Node) -> bool:
    return node.target is operator.getitem or node.target in (torch.max, "max")


def _reads(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that read a node's shape, and parts of it."""
    found = {one for one in node.users if is_shape_read(one)}
    return found | {part for one in found for part in one.users if _is_part(part)}


def _is_served(embedding: Link) -> bool:
    options = embedding.options
    refused = options["max_norm"] is not None or options["scale_grad_by_freq"] or options["sparse"]
    return embedding.reason is None and not refused


def _writes(node: fx.Node) -> bool:
    """Tell whether a node may write to a tensor that others see; modules write to their own buffers alone."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or "out" in node.kwargs or node.target in WRITING or bool(node.kwargs.get("inplace"))


def _is_changed(layer: Link, leaves: Mapping[str, nn.Module]) -> bool:
    """Tell whether a GRU's output, or a part of it, is written to: torch's own does not need it for gradients."""
    waiting = [one for one in layer.node.users if _is_part(one) and one.args[1:] == (0,)]
    while waiting and layer.options["operation"] == "gru":
        node = waiting.pop()
        for user in node.users:
            module = leaves.get(str(user.target)) if user.op == "call_module" else None
            if _writes(user) or getattr(module, "inplace", False):
                return True
            name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
            if user.op != "call_module" and name in VIEWS:
                waiting.append(user)
    return False


def _switches(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and any(word in name for word in ("grad_enabled", "autocast", "inference_mode"))


def _statistics(norm: Link) -> Any:
    """Return what tells which running statistics a norm takes."""
    options = norm.options
    return options["module"] if "module" in options else _name_of(options["running_mean"]) or norm


def _name_of(value: Any) -> Any:
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else value


def _name(conv: Link) -> str:
    if conv.node.op == "call_module":
        return str(conv.node.target)
    weight = conv.options.get("weight")
    return str(weight.target if isinstance(weight, fx.Node) else weight)


def _describe(node: fx.Node) -> str:
    if node.op == "output":
        return "it is returned"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{name} comes"
