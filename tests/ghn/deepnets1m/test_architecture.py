from __future__ import annotations

import json
from dataclasses import replace

import pytest
from examples import architectures, one_operation, sample
from hypothesis import given

from ghn import Architecture, Genotype, network_from_dict
from ghn.deepnets1m.genotype import OPERATIONS
from ghn.deepnets1m.predefined import PREDEFINED


@given(architectures())
def test_an_architecture_survives_json(architecture: Architecture) -> None:
    again = network_from_dict(json.loads(json.dumps(architecture.to_dict())))
    assert again == architecture and hash(again) == hash(architecture)


@pytest.mark.parametrize("name", sorted(PREDEFINED))
def test_a_predefined_network_survives_json(name: str) -> None:
    assert network_from_dict(json.loads(json.dumps(PREDEFINED[name].to_dict()))) == PREDEFINED[name]


def test_keys_that_are_no_fields_are_ignored() -> None:
    architecture = sample("train", 0)
    assert Architecture.from_dict({**architecture.to_dict(), "num_params": 1, "index": 5}) == architecture


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_cells", 0),
        ("C", 0),
        ("C", 33),
        ("C_mult", 3),
        ("ks", 4),
        ("ks", 1),
        ("stem_type", 2),
        ("norm", "batchnorm"),
        ("fc_layers", 0),
        ("fc_layers", 3),
        ("fc_dim", 0),
        ("n_cells", "4"),
        ("n_cells", 4.0),
        ("C", None),
        ("C", 32.0),
        ("C_mult", True),
        ("stem_pool", "false"),
        ("preproc", None),
        ("glob_avg", 1),
    ],
)
def test_an_impossible_field_is_refused_with_its_name_and_value(field: str, value: object) -> None:
    record = {**one_operation("conv_3x3").to_dict(), field: value}
    with pytest.raises(ValueError, match=f"{field} = {value!r}: must be"):
        Architecture.from_dict(record)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"normal": []}, "genotype.normal has 0 edges"),
        ({"reduce": [["conv_3x3", 1]]}, "genotype.reduce has 1 edges"),
        ({"normal": [["conv_9x9", 1], ["none", 0]]}, "genotype.normal: unknown operation 'conv_9x9'"),
        ({"normal": [["conv_3x3", 2], ["none", 0]]}, "genotype.normal: edge 0 reads state 2"),
        ({"reduce": [["conv_3x3", -1], ["none", 0]]}, "genotype.reduce: edge 0 reads state -1"),
        ({"normal_concat": []}, r"genotype.normal_concat = \[\]"),
        ({"normal_concat": [1]}, r"genotype.normal_concat = \[1\]"),
        ({"reduce_concat": [3]}, r"genotype.reduce_concat = \[3\]"),
        ({"normal_concat": [2, 2]}, r"genotype.normal_concat = \[2, 2\]"),
        ({"normal_concat": [2.0]}, "genotype.normal_concat: states must be integers"),
        ({"normal": [["conv_3x3", 0.7], ["none", 0]]}, "genotype.normal and"),
        ({"normal": None}, "genotype: must hold pairs"),
        ({"reduce": ["conv_3x3", "none"]}, "genotype: must hold pairs|too many values"),
    ],
)
def test_an_impossible_genotype_is_refused_with_the_cell(cell: dict, message: str) -> None:
    record = one_operation("conv_3x3").to_dict()
    with pytest.raises(ValueError, match=message):
        Architecture.from_dict({**record, "genotype": {**record["genotype"], **cell}})


@pytest.mark.parametrize("field", ["genotype", "n_cells"])
def test_a_missing_field_is_named(field: str) -> None:
    record = sample("train", 0).to_dict()
    del record[field]
    with pytest.raises(ValueError, match=f"without {field}"):
        Architecture.from_dict(record)


@pytest.mark.parametrize("field", ["normal", "normal_concat", "reduce", "reduce_concat"])
def test_a_missing_field_of_the_genotype_is_named(field: str) -> None:
    record = sample("train", 0).to_dict()
    del record["genotype"][field]
    with pytest.raises(ValueError, match=field):
        Architecture.from_dict(record)


def test_heads_of_attention_divide_the_width() -> None:
    with pytest.raises(ValueError, match="C = 12: must be divisible by the 8 heads"):
        one_operation("msa", C=12)


def test_cells_that_change_the_width_need_preprocessing() -> None:
    two_states = Genotype(
        (("conv_3x3", 0), ("conv_3x3", 1)) * 2, (2, 3), (("conv_3x3", 0), ("conv_3x3", 1)) * 2, (2, 3)
    )
    for fields in ({"C_mult": 2}, {"genotype": two_states}):
        with pytest.raises(ValueError, match="preproc = false"):
            replace(one_operation("conv_3x3"), preproc=False, **fields)


def test_each_operation_makes_another_network() -> None:
    hashes = {one_operation(operation).network_hash for operation in OPERATIONS if operation != "none"}
    assert len(hashes) == len(OPERATIONS) - 1


@given(architectures())
def test_the_order_of_a_states_edges_does_not_make_another_network(architecture: Architecture) -> None:
    def swapped(edges: tuple) -> tuple:
        return tuple(edges[position ^ 1] for position in range(len(edges)))

    genotype = architecture.genotype
    genotype = replace(genotype, normal=swapped(genotype.normal), reduce=swapped(genotype.reduce))
    assert replace(architecture, genotype=genotype).network_hash == architecture.network_hash


@given(architectures())
def test_what_does_not_reach_the_output_does_not_make_another_network(architecture: Architecture) -> None:
    genotype = architecture.genotype
    edges = (("sep_conv_3x3", 0), ("skip_connect", 1))
    unused = replace(genotype, normal=genotype.normal + edges, reduce=genotype.reduce + edges)
    other = replace(architecture, genotype=unused)
    assert other.network_hash == architecture.network_hash
    assert other.num_parameters(32, 10) == architecture.num_parameters(32, 10)


@given(architectures())
def test_width_changes_the_network_and_nothing_else_of_the_record(architecture: Architecture) -> None:
    wide = architecture.with_width(16)
    assert wide == replace(architecture, C=16)
    assert wide.network_hash != architecture.network_hash
    assert wide.graph(32, 10).edges == architecture.graph(32, 10).edges
