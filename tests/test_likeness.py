"""`compare`: what is said of two adapters is what their dense ΔW give, whatever program they are of."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import assert_agree, model, moved
from foreign_world import ALPHA, RANK, D, Q, command, said_by, world, write_adapter

from lora_np.converting import convert
from lora_np.converting.likeness import Maps, alike, one_map, read_maps
from lora_np.files import load_adapter, read_arrays, save_adapter, save_model, write_arrays
from lora_np.lora import adapters, delta
from lora_np.methods import METHODS
from lora_np.methods.lora import LoraConfig
from lora_np.paper.subspaces import orthonormal, principal_angles, similarity
from lora_np.parameters import with_parameters

SIZES: dict[str, Any] = {"vocab": 256, "context": 32, "d_model": 16}


def saved(folder: Path, base: Any, seed: int, **settings: Any) -> Any:
    """An adapter folder with B far from zero, and the adapted model."""
    method = LoraConfig(**{"rank": 2, "alpha": 3.0, **settings})
    node = moved(method.apply(base, np.random.default_rng(seed)), seed + 10)
    folder.mkdir()
    save_adapter(folder, node, method, base)
    return node


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The base, adapters `one` and `two` of different ranks, targets and scales, and both as models."""
    folder, base = tmp_path_factory.mktemp("made"), model(0, np.float32, **SIZES)
    save_model(folder / "base", base)
    one = saved(folder / "one", base, 1, targets="qkvo", alphas={"key": 5.0})
    two = saved(folder / "two", base, 2, rank=3, targets=("query", "value", "mlp.up"), ranks={"query": 4})
    return folder, one, two


def by_definition(first: np.ndarray, second: np.ndarray, ranks: tuple[int, int]) -> dict[str, Any]:
    """All that is said of two dense updates, by singular value decompositions of the whole matrices."""
    (U, S, V), (P, T, Q) = (np.linalg.svd(update.astype(np.float64)) for update in (first, second))
    i, j = ranks
    cosines = {"columns": np.linalg.svd(U[:, :i].T @ P[:, :j])[1], "rows": np.linalg.svd(V[:i] @ Q[:j].T)[1]}
    inner = float((first.astype(np.float64) * second).sum())
    return {
        "norms": [np.linalg.norm(S), np.linalg.norm(T)],
        "cosine": inner / float(np.linalg.norm(S) * np.linalg.norm(T)),
        **{s: {"phi": (c**2).mean(), "angles": np.degrees(np.arccos(np.minimum(c, 1)))} for s, c in cosines.items()},
    }


def test_every_figure_is_that_of_the_dense_updates(made: tuple[Path, Any, Any]) -> None:
    folder, one, two = made
    code, found = command("compare", folder / "one", folder / "two")
    assert code == 0
    ours, theirs = adapters(one), adapters(two)
    common = [path for path in ours if path in theirs]
    assert [entry["name"] for entry in found["maps"]] == common
    for entry in found["maps"]:
        a, b = ours[entry["name"]], theirs[entry["name"]]
        expected = by_definition(delta(a), delta(b), (len(a.A), len(b.A)))
        assert entry["shape"] == list(a.base.W.shape)
        np.testing.assert_allclose(entry["norms"], expected["norms"], rtol=1e-6)
        np.testing.assert_allclose(entry["cosine"], expected["cosine"], atol=1e-6)
        for side, d in (("columns", a.base.W.shape[0]), ("rows", a.base.W.shape[1])):
            got = entry[side]
            assert (got["dims"], got["d"]) == ([len(a.A), len(b.A)], d)
            np.testing.assert_allclose(got["phi"], expected[side]["phi"], atol=1e-6)
            np.testing.assert_allclose(got["angles"], expected[side]["angles"], atol=1e-3)
            np.testing.assert_allclose(got["phi"], np.mean(np.cos(np.radians(got["angles"])) ** 2), atol=1e-12)
            assert got["chance"] == pytest.approx(max(len(a.A), len(b.A)) / d)
    whole = [np.concatenate([delta(maps[path]).ravel() for path in common]) for maps in (ours, theirs)]
    assert found["cosine"] == pytest.approx(
        float(whole[0] @ whole[1] / np.prod([*map(np.linalg.norm, whole)])), abs=1e-6
    )
    assert found["adapters"][0]["only"] == [path for path in ours if path not in theirs]
    assert found["adapters"][1]["only"] == [path for path in theirs if path not in ours]


def pair(seed: int, d_out: int = 12, d_in: int = 9, rank: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))


def test_how_an_update_is_cut_into_factors_changes_nothing_and_its_sign_turns_the_cosine() -> None:
    (B, A), other = pair(0), pair(1)
    G = np.random.default_rng(2).standard_normal((3, 3))
    one, again = one_map("m", (B, A), other), one_map("m", (B @ np.linalg.inv(G), G @ A), other)
    for side in ("columns", "rows"):
        assert_agree(getattr(one, side).phi, getattr(again, side).phi)
    assert_agree(np.array([one.cosine, *one.norms]), np.array([again.cosine, *again.norms]))
    turned = one_map("m", (-2.0 * B, A), other)
    assert turned.cosine == pytest.approx(-one.cosine)
    assert turned.norms[0] == pytest.approx(2.0 * one.norms[0])
    same = one_map("m", (B, A), (0.5 * B, A))
    assert (same.cosine, same.columns.phi, same.rows.phi) == pytest.approx((1.0, 1.0, 1.0))
    assert max(same.columns.angles + same.rows.angles) < 1e-5


def test_orthogonal_updates_share_nothing() -> None:
    E = np.eye(6)
    found = one_map("m", (E[:, :2], E[:2]), (E[:, 2:5], E[2:5]))
    assert (found.cosine, found.columns.phi, found.rows.phi) == pytest.approx((0.0, 0.0, 0.0))
    assert found.columns.angles == pytest.approx((90.0, 90.0))


def test_small_angles_are_told_apart_where_their_cosines_are_all_one() -> None:
    U = orthonormal(np.random.default_rng(0), 30, 4)
    for angle in (1e-3, 1e-9, 1e-12):
        V = U[:, :2].copy()
        V[:, 0] = math.cos(angle) * U[:, 0] + math.sin(angle) * U[:, 3]
        for found in (principal_angles(U[:, :3], V), principal_angles(V, U[:, :3])):
            assert found.shape == (2,)
            assert found[0] < 1e-14
            assert found[1] == pytest.approx(angle, rel=1e-3)
    assert principal_angles(U[:, :2], U[:, 2:]) == pytest.approx([math.pi / 2] * 2)
    X, Y = orthonormal(np.random.default_rng(1), 9, 4), orthonormal(np.random.default_rng(2), 9, 3)
    assert np.mean(np.cos(principal_angles(X, Y)) ** 2) == pytest.approx(similarity(X, Y).values[-1, -1])


def test_by_chance_it_is_what_is_said_beside_it() -> None:
    """Independent Gaussian factors: mean and standard deviation of φ and of the cosine, within their own errors."""
    found = [one_map("m", pair(2 * k, 20, 15, 2), pair(2 * k + 1, 20, 15, 3)) for k in range(300)]
    root = math.sqrt(len(found))
    for side in ("columns", "rows"):
        values, one = np.array([getattr(f, side).phi for f in found]), getattr(found[0], side)
        assert abs(values.mean() - one.chance) < 5.0 * one.spread / root
        assert values.std() == pytest.approx(one.spread, rel=0.2)
    cosines = np.array([f.cosine for f in found])
    assert abs(cosines.mean()) < 5.0 * found[0].spread / root
    assert cosines.std() == pytest.approx(found[0].spread, rel=0.2)


def test_nothing_of_the_size_of_the_map_is_made() -> None:
    big, other = pair(0, 6_000, 6_000, 2), pair(1, 6_000, 6_000, 2)
    tracemalloc.start()
    try:
        one_map("m", big, other)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # the map itself would be 288 MB


def test_an_update_of_zero_has_no_direction() -> None:
    B, A = pair(0)
    found = one_map("m", (0.0 * B, A), pair(1))
    assert (found.norms[0], found.spectra[0], found.cosine, found.columns, found.rows) == (0.0, (), None, None, None)


def test_an_untrained_adapter_is_compared_without_a_word_about_angles(
    made: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    folder, one, _ = made
    base, method = model(0, np.float32, **SIZES), LoraConfig(rank=2)
    (tmp_path / "fresh").mkdir()
    save_adapter(tmp_path / "fresh", method.apply(base, np.random.default_rng(0)), method, base)
    code, said = said_by("compare", tmp_path / "fresh", folder / "one")
    assert code == 0
    assert "cosine -" in said


# of other programs


def test_the_same_adapter_in_four_formats_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    base = model(0, np.float32, **SIZES)
    save_model(tmp_path / "base", base)
    saved(tmp_path / "own", base, 1, targets=("query", "output"))
    kinds = {"own": tmp_path / "own"}
    for to in ("peft", "mlx", "gguf"):
        convert(kinds["own"], to, tmp_path / to, base=tmp_path / "base")
        kinds[to] = tmp_path / to
    for one, other in (("own", "peft"), ("peft", "mlx"), ("gguf", "own"), ("mlx", "gguf")):
        code, found = command("compare", kinds[one], kinds[other], "--base", tmp_path / "base")
        assert (code, len(found["maps"])) == (0, 4), (one, other)
        assert found["cosine"] == pytest.approx(1.0, abs=1e-6)
    for one, other in (("own", "own"), ("peft", "peft"), ("peft", "mlx"), ("gguf", "gguf")):
        assert command("compare", kinds[one], kinds[other])[1]["cosine"] == pytest.approx(1.0)  # no base is needed
    assert said_by("compare", kinds["gguf"], kinds["own"])[0] == 2  # other names, and rows in another order
    found = command("compare", kinds["own"], kinds["peft"])[1]  # the query lies in a fused map there: only with a base
    assert [entry["name"] for entry in found["maps"]] == [f"blocks.{i}.attention.output" for i in (0, 1)]
    assert found["cosine"] == pytest.approx(1.0)
    assert found["adapters"][0]["only"] == [f"blocks.{i}.attention.query" for i in (0, 1)]


def test_maps_of_two_programs_are_paired_by_what_their_names_mean() -> None:
    one = Maps(Path("a"), "lora_np", {"blocks.0.attention.query": pair(0), "blocks.1.mlp.up": pair(1)})
    other = Maps(Path("b"), "peft", {"model.layers.1.mlp.up_proj": pair(1), "model.layers.0.self_attn.q_proj": pair(0)})
    found = alike(one, other)
    assert [entry.name for entry in found.maps] == list(one.pairs)
    assert found.cosine == pytest.approx(1.0)


def test_an_adapter_of_peft_is_compared_by_what_it_does_to_the_base(tmp_path: Path) -> None:
    w = world(tmp_path / "a")
    other = world(tmp_path / "b", lora_alpha=2 * ALPHA)
    code, found = command("compare", tmp_path / "a" / "adapter", tmp_path / "b" / "adapter")
    (entry,) = found["maps"]
    assert (code, entry["name"], entry["shape"]) == (0, Q, [D, D])
    assert entry["norms"] == pytest.approx([np.linalg.norm(w.change()), 2 * np.linalg.norm(other.change())], rel=1e-5)
    assert entry["columns"]["dims"] == [RANK, RANK]


def test_one_that_changed_its_base_before_training_needs_it(tmp_path: Path) -> None:
    w = world(tmp_path / "a", init_lora_weights="pissa")
    world(tmp_path / "b")
    code, said = said_by("compare", tmp_path / "a" / "adapter", tmp_path / "b" / "adapter")
    assert code == 2
    code, found = command(
        "compare", tmp_path / "a" / "adapter", tmp_path / "b" / "adapter", "--base", tmp_path / "a" / "base"
    )
    assert code == 0
    U, S, V = np.linalg.svd(w.base[f"{Q}.weight"].astype(np.float64))
    change = w.change().astype(np.float64) - (U[:, :RANK] * S[:RANK]) @ V[:RANK]
    assert found["maps"][0]["norms"][0] == pytest.approx(np.linalg.norm(change), rel=1e-5)


def test_what_is_not_compared_is_said(tmp_path: Path) -> None:
    world(tmp_path / "a")
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((RANK, D)), rng.standard_normal((D, RANK))
    leaves = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.lora_magnitude_vector": np.ones(D)}
    (tmp_path / "b").mkdir()
    write_adapter(tmp_path / "b", {name: a.astype(np.float32) for name, a in leaves.items()}, use_dora=True)
    code, said = said_by("compare", tmp_path / "a" / "adapter", tmp_path / "b" / "adapter")
    assert code == 0
    assert "magnitudes (DoRA): s·BA alone is compared" in said


# what is refused, in one line


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert said_by("compare", *arguments)[0] == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_other_shapes_are_refused_in_one_line(
    made: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = model(0, np.float32, **{**SIZES, "d_model": 32})
    saved(tmp_path / "wide", wider, 1)
    line = refused(capsys, made[0] / "one", tmp_path / "wide")
    assert "blocks.0.attention.query is 16×16 in one adapter and 32×32 in the other" in line


def test_bad_input_is_refused_in_one_line(
    made: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, base = made[0], model(0, np.float32, **SIZES)
    saved(tmp_path / "mlp", base, 1, targets="mlp.down")
    assert "no map is adapted by both" in refused(capsys, folder / "one", tmp_path / "mlp")
    prefix = METHODS["prefix-layer"]()
    (tmp_path / "prefix").mkdir()
    save_adapter(tmp_path / "prefix", prefix.apply(base, np.random.default_rng(0)), prefix, base)
    assert "prefix-layer" in refused(capsys, folder / "one", tmp_path / "prefix")
    assert "nowhere" in refused(capsys, folder / "one", tmp_path / "nowhere")
    refused(capsys, folder / "one", folder / "base")
    saved(tmp_path / "cut", base, 1)
    arrays, header = read_arrays(tmp_path / "cut" / "adapter.safetensors")
    name = "blocks.0.attention.query.A"
    write_arrays(tmp_path / "cut" / "adapter.safetensors", {**arrays, name: arrays[name][:1]}, header)
    assert "rank 2" in refused(capsys, tmp_path / "cut", folder / "one")
    assert said_by("compare", folder / "one")[0] == 2


def test_a_broken_adapter_of_peft_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world(tmp_path / "a")
    A, B = np.full((RANK, D), np.nan, np.float32), np.ones((D, RANK), np.float32)
    (tmp_path / "b").mkdir()
    write_adapter(tmp_path / "b", {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B})
    assert "not finite" in refused(capsys, tmp_path / "a" / "adapter", tmp_path / "b" / "adapter")


def test_two_bases_are_named(made: tuple[Path, Any, Any], tmp_path: Path) -> None:
    other = model(5, np.float32, **SIZES)
    saved(tmp_path / "other", other, 1)
    code, said = said_by("compare", made[0] / "one", tmp_path / "other")
    assert code == 0
    assert "they were trained on different bases (" in said
    assert "different bases" not in said_by("compare", made[0] / "one", made[0] / "two")[1]


def test_a_classifier_and_a_relative_of_lora_are_read(tmp_path: Path) -> None:
    base = model(0, np.float32, **SIZES)
    for name in ("lora+", "pissa", "dora", "lora-fa"):
        method = METHODS[name](rank=2)
        node = method.apply(base, np.random.default_rng(0))
        trained = {n: a + np.float32(0.1) for n, a in method.trained(node).items()}
        node = with_parameters(node, trained)
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, node, method, base)
        maps = read_maps(tmp_path / name)
        back, _ = load_adapter(tmp_path / name, base)
        for path, (B, A) in maps.pairs.items():
            wrapper = back.blocks[int(path.split(".")[1])].attention
            wrapper = getattr(wrapper, path.rpartition(".")[2])
            assert_agree(B @ A, wrapper.scaling * (wrapper.B.astype(float) @ wrapper.A.astype(float)), path)


# the picture


def test_spectra_are_drawn_and_nothing_is_replaced(
    made: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made[0]
    for name, begins in (("s.svg", b"<?xml"), ("s.png", b"\x89PNG")):
        code, said = said_by("compare", folder / "one", folder / "two", "--picture", tmp_path / name)
        assert code == 0
        assert (tmp_path / name).read_bytes().startswith(begins)
        before = (tmp_path / name).read_bytes()
        assert "exists" in refused(capsys, folder / "one", folder / "two", "--picture", tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert "FILE.svg" in refused(capsys, folder / "one", folder / "two", "--picture", tmp_path / "s.txt")
    assert "no folder" in refused(capsys, folder / "one", folder / "two", "--picture", tmp_path / "no" / "s.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.png", "s.svg"]


def test_inspect_draws_the_spectra_of_an_adapter_and_none_of_a_model(tmp_path: Path) -> None:
    world(tmp_path)
    assert said_by("inspect", tmp_path / "adapter", "--picture", tmp_path / "s.svg")[0] == 0
    assert (tmp_path / "s.svg").stat().st_size > 1000
    assert said_by("inspect", tmp_path / "base", "--picture", tmp_path / "t.svg")[0] == 2
    assert not (tmp_path / "t.svg").exists()


def test_the_lines_of_the_picture_are_the_singular_values() -> None:
    from lora_np.figures.spectra import spectra

    values = {"blocks.0.attention.query": (3.0, 1.0), "blocks.1.attention.query": (2.0, 0.0), "head": (1.0, 0.5)}
    figure = spectra({"one": values, "two": {"blocks.0.attention.query": (0.5,)}})
    first, second = (axes for axes in figure.axes if axes.get_visible())
    assert [list(line.get_ydata()) for line in first.lines] == [[3.0, 1.0], [2.0], [0.5]]
    assert [list(line.get_ydata()) for line in second.lines] == [[1.0, 0.5]]
    assert first.get_yscale() == "log"
    assert (first.get_title(), second.get_title()) == ("attention.query, by block", "head")
    with pytest.raises(ValueError, match="not zero"):
        spectra({"one": {"head": (0.0,)}})
