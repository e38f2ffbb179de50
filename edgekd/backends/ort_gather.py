"""Places taken along the tokens by one operator, Gather, instead of the four nodes that torch's exporter writes for `x[:, places]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ort_match import Nodes, integer, order

if TYPE_CHECKING:
    import onnx

NAME = "Gather"
_TURNED = [1, 0, 2]


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return the model with each Transpose, GatherND, Transpose that takes places along the second of three axes as a Gather, and how many."""
    import onnx
    from onnx import helper

    from ..export.edit import drop_unused

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, count = Nodes(made.graph), 0
    for node in made.graph.node:
        back = node if node.op_type == "Transpose" and not node.domain and order(node) == _TURNED else None
        taken = graph.made_by(back.input[0], "GatherND") if back else None
        there = graph.made_by(taken.input[0], "Transpose") if taken and integer(taken, "batch_dims", 0) == 0 else None
        places = graph.made_by(taken.input[1], "Unsqueeze") if taken else None
        if there is None or places is None or order(there) != _TURNED or graph.whole(places.input[1]) != [-1]:
            continue
        inputs = [there.input[0], places.input[0]]
        node.CopyFrom(helper.make_node("Gather", inputs, list(node.output), name=node.name, axis=1))
        count += 1
    if not count:
        return model, 0
    drop_unused(made)
    return made, count
