from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ghn.deepnets1m.predefined import PREDEFINED
from ghn.deepnets1m.sampling import sample_architecture
from ghn.networks.graph import PRIMITIVES, Graph, Node
from ghn.networks.operations import Parameter
from ghn.tracing.trace import trace
from pipeline.reporting.graph_pictures.columns import BOX_HEIGHT
from pipeline.reporting.graph_pictures.export import inline_svg, save, svg
from pipeline.reporting.graph_pictures.layout import GraphLayout, NodeBox, Point, lay_out
from pipeline.reporting.graph_pictures.render import render_bare_graph, render_graph
from pipeline.reporting.graph_pictures.texts import PRIMITIVE_COLORS, TEXT_SIZE, label


@st.composite
def graphs(draw, most: int = 20) -> Graph:
    """Return any directed acyclic graph of any primitives, some with shapes; nodes may be without edges."""
    count = draw(st.integers(1, most))
    pairs = [(u, v) for v in range(count) for u in range(v)]
    edges = draw(st.sets(st.sampled_from(pairs), max_size=4 * count)) if pairs else set()
    shapes = st.sampled_from((None, (64, 3, 7, 7), (1000, 2048, 1, 1), (8, 1, 1, 1)))
    nodes = [Node(draw(st.sampled_from(PRIMITIVES)), draw(shapes)) for _ in range(count)]
    return Graph(tuple(nodes), tuple(sorted(edges)))


def chain(count: int) -> Graph:
    edges = [(v, v + 1) for v in range(count - 1)]
    return Graph((Node("input"), *(Node("conv", (8, 8, 3, 3)) for _ in range(count - 1))), tuple(edges))


@pytest.fixture(scope="module")
def resnet18() -> Graph:
    return trace(torchvision.models.resnet18())


@pytest.fixture(scope="module")
def dense() -> Graph:
    return sample_architecture(0, "dense", 3).graph(32, 10)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def rendered(figure: Figure, pattern: str) -> list[str]:
    """Return the identifiers of what is rendered."""
    gids = [patch.get_gid() or "" for patch in figure.axes[0].patches]
    return [gid for gid in gids if re.fullmatch(pattern, gid)]


def legend(figure: Figure) -> dict[str, int]:
    """Return the counts that are written beside the colours."""
    primitives = [gid.removeprefix("legend-") for gid in rendered(figure, r"legend-\w+")]
    written = [text for text in figure.axes[0].texts if text.get_fontsize() == TEXT_SIZE][-len(primitives) :]
    names, counts = zip(*(text.get_text().split() for text in written), strict=True)
    assert list(names) == primitives
    return dict(zip(names, map(int, counts), strict=True))


def overlap(a: NodeBox, b: NodeBox) -> bool:
    across = abs(a.x - b.x) < (a.width + b.width) / 2 - 0.01
    return across and abs(a.y - b.y) < BOX_HEIGHT - 0.01


def assert_laid_out(graph: Graph, layout: GraphLayout) -> None:
    """Assert that nothing is missing, nothing overlaps and all is within the page.

    Each edge leads from its source, or the line of it, down to its target.
    """
    assert len(layout.boxes) == len(graph.nodes)
    assert not any(overlap(a, b) for a, b in itertools.combinations(layout.boxes, 2))
    for box in layout.boxes:
        assert box.width / 2 <= box.x <= layout.width - box.width / 2 + 0.01
        assert 0 <= box.y <= layout.height - BOX_HEIGHT
    assert sorted(layout.links) == sorted(graph.edges)
    for (source, target), (start, end) in layout.links.items():
        origin, box = layout.boxes[source], layout.boxes[target]
        assert end == (box.x, box.y)
        assert start[1] < end[1]
        assert start == (origin.x, origin.y + BOX_HEIGHT) or is_on(layout.lines[source], start)
    for source, strokes in layout.lines.items():
        assert strokes[0][0] == (layout.boxes[source].x, layout.boxes[source].y + BOX_HEIGHT)
        assert all(is_on(strokes[:i], stroke[0]) for i, stroke in enumerate(strokes) if i)


def is_on(strokes: Sequence[Sequence[Point]], point: Point) -> bool:
    """Return whether a point is in a vertical piece of the strokes or at an end of them."""
    pieces = [piece for stroke in strokes for piece in itertools.pairwise(stroke)]
    return any(b == point or (a[0] == b[0] == point[0] and a[1] <= point[1] <= b[1]) for a, b in pieces)


def test_every_primitive_has_a_colour_of_its_own() -> None:
    assert set(PRIMITIVE_COLORS) == set(PRIMITIVES)
    assert len(set(PRIMITIVE_COLORS.values())) == len(PRIMITIVES)


@settings(max_examples=40)
@given(graphs(), st.booleans())
def test_nodes_do_not_overlap_and_edges_join_them(graph: Graph, arcs: bool) -> None:
    assert_laid_out(graph, lay_out(graph, [40.0 + 10 * (v % 3) for v in range(len(graph.nodes))], header=70, arcs=arcs))


@settings(max_examples=15)
@given(graphs(), st.booleans())
def test_any_graph_is_rendered_in_full(graph: Graph, virtual_edges: bool) -> None:
    figure = render_graph(graph, "any", virtual_edges)
    assert rendered(figure, r"node-\d+") == [f"node-{v}" for v in range(len(graph.nodes))]
    assert sorted(rendered(figure, r"edge-\d+-\d+")) == sorted(f"edge-{u}-{v}" for u, v in graph.edges)
    assert legend(figure) == Counter(graph.primitives)


def test_a_dense_architecture_is_laid_out_without_overlaps(dense: Graph) -> None:
    assert_laid_out(dense, lay_out(dense, [60.0] * len(dense.nodes), header=70))


def test_the_subtitle_counts_nodes_edges_and_parameters(resnet18: Graph) -> None:
    figure = render_graph(resnet18, "ResNet-18, $2 and $3")
    assert texts(figure)[:2] == ["ResNet-18, $2 and $3", "53 nodes · 60 edges · 11.7 M parameters"]
    assert legend(figure) == Counter(resnet18.primitives)


def test_the_subtitle_tells_how_many_tensors_are_not_predicted() -> None:
    graph = Graph(chain(3).nodes, ((0, 1), (1, 2)), {"head.weight": "it is not used"})
    assert texts(render_graph(graph, "chain"))[1] == "3 nodes · 2 edges · 0 parameters · 1 tensor not predicted"


def test_virtual_edges_are_rendered_when_asked_for_and_only_as_far_as_they_are_readable(resnet18: Graph) -> None:
    assert not rendered(render_graph(resnet18, "resnet18"), r"virtual-.*")
    figure = render_graph(resnet18, "resnet18", virtual_edges=True)
    assert rendered(figure, r"virtual-.*") == ["virtual-2", "virtual-3"]
    assert texts(figure)[2] == "1,294 virtual edges at distances 2 to 50; shown are 165, at distances 2 to 3"
    few = render_graph(resnet18, "resnet18", virtual_edges=True, longest=2)
    assert texts(few)[2] == "74 virtual edges at distances 2 to 2"


@pytest.mark.parametrize("count", [60, 250])
def test_a_long_chain_is_folded_into_the_proportions_of_a_screen(count: int) -> None:
    width, height = render_graph(chain(count), "chain").get_size_inches()
    assert 1.2 < width / height < 1.9


def test_columns_are_broken_between_blocks(resnet18: Graph) -> None:
    boxes = lay_out(resnet18, [80.0] * len(resnet18.nodes), header=70).boxes
    ends = [v for v, (a, b) in enumerate(itertools.pairwise(boxes)) if a.column != b.column]
    assert len(ends) > 1
    assert {resnet18.primitives[v] for v in ends} == {"sum"}


def test_a_late_position_encoding_is_in_the_row_before_its_sum() -> None:
    nodes = (*chain(6).nodes, Node("pos_enc", (1, 8, 4, 4)), Node("sum"))
    boxes = lay_out(Graph(nodes, (*chain(6).edges, (5, 7), (6, 7))), [40.0] * 8, header=70).boxes
    assert (boxes[6].y, boxes[6].column) == (boxes[5].y, boxes[5].column)


def test_blocks_are_named_after_their_modules(resnet18: Graph) -> None:
    assert {f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)} <= set(texts(render_graph(resnet18, "resnet18")))
    darts = render_graph(PREDEFINED["darts"].graph(32, 10), "darts")
    cells = {text for text in texts(darts) if re.fullmatch(r"cells\.\d+", text)}
    assert len(cells) > 2


def test_the_same_graph_gives_the_same_bytes(resnet18: Graph, tmp_path: Path) -> None:
    for graph, kind in ((resnet18, "svg"), (chain(9), "png"), (chain(9), "pdf")):
        files = [tmp_path / f"{name}.{kind}" for name in ("first", "second")]
        for file in files:
            save(render_graph(graph, "twice", virtual_edges=True), file)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_text_of_an_svg_is_text_and_its_boxes_have_tooltips(resnet18: Graph) -> None:
    text = svg(render_graph(resnet18, "a < b & c"))
    root = ElementTree.fromstring(text)
    names = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"a < b & c", "conv 7×7, 3→64", "glob_avg", "layer4.1"} <= names
    tips = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "conv1.weight 64×3×7×7" in tips
    assert "bn1.weight 64\nbn1.bias 64" in tips
    assert len(tips) == len(resnet18.nodes)
    assert len(text) < 100_000


def test_a_bare_graph_has_all_its_boxes_and_neither_title_nor_legend(resnet18: Graph) -> None:
    figure = render_bare_graph(resnet18)
    assert rendered(figure, r"node-\d+") == [f"node-{v}" for v in range(len(resnet18.nodes))]
    assert not rendered(figure, r"legend-\w+")
    assert texts(figure)[0] == label(resnet18.nodes[0])


def test_boxes_in_a_page_have_tooltips_identifiers_of_their_own_and_colours_that_stay(resnet18: Graph) -> None:
    text = inline_svg(render_bare_graph(resnet18), "here", "a graph")
    assert text.count("<title>") == len(resnet18.nodes)
    assert '<g id="here-node-1"><title>conv1.weight 64×3×7×7</title>' in text
    assert PRIMITIVE_COLORS["conv"] in text
    assert "var(--ink)" not in text  # it would be light on light boxes in a dark page


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"graph\.gif is not the name of a picture: must end in \.svg, \.png"):
        save(render_graph(chain(2), "chain"), tmp_path / "graph.gif")


@pytest.mark.parametrize(
    ("primitive", "shape", "text"),
    [
        ("conv", (64, 3, 7, 7), "conv 7×7, 3→64"),
        ("conv", (64, 32, 1, 7), "conv 1×7, 32→64"),
        ("sep_conv", (96, 1, 5, 5), "sep_conv 5×5, 96"),
        ("dil_conv", (96, 4, 3, 3), "dil_conv 3×3, 4→96"),
        ("bias", (1000, 1, 1, 1), "bias 1000"),
        ("bn", (1, 1, 1, 1), "bn 1"),
        ("pos_enc", (1, 768, 14, 14), "pos_enc 768×14×14"),
        ("max_pool", (1, 1, 3, 3), "max_pool 3×3"),
        ("sum", None, "sum"),
    ],
)
def test_a_box_tells_what_matters_of_a_shape(primitive: str, shape: tuple[int, ...] | None, text: str) -> None:
    parameters = (Parameter("weight", shape),) if shape else ()
    assert label(Node(primitive, shape, parameters)) == text
