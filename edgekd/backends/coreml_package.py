"""An .mlpackage on disk: a folder with a manifest, the program and its weights. The same program gives the same bytes."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from .coreml_program import quiet

_DATA = "Data/com.apple.CoreML"


def write(model: Any, path: Path) -> Path:
    """Write a coremltools MLModel to `path`, a folder that is made anew; return it."""
    shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        draft = Path(scratch) / "draft.mlpackage"
        model.save(str(draft))
        made = draft / _DATA
        items = [("model.mlmodel", "CoreML Model Specification")]
        (path / _DATA).mkdir(parents=True)
        (path / _DATA / "model.mlmodel").write_bytes(_settled(made / "model.mlmodel"))
        if (made / "weights").is_dir():
            shutil.copytree(made / "weights", path / _DATA / "weights", copy_function=shutil.copyfile)
            items.append(("weights", "CoreML Model Weights"))
    keys = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"com.apple.CoreML/{name}")) for name, _ in items}
    entries = {
        keys[name]: {"author": "com.apple.CoreML", "description": told, "name": name, "path": f"com.apple.CoreML/{name}"}
        for name, told in items
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": keys["model.mlmodel"]}
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n")
    return path


def read(path: Path) -> Any:
    """Return the Model message of an .mlpackage. Raises what protobuf and the file system raise."""
    with quiet():
        from coremltools.proto import Model_pb2

        return Model_pb2.Model.FromString((path / _DATA / "model.mlmodel").read_bytes())


def weights_folder(path: Path) -> Path:
    """Return where the package keeps its constants."""
    return path / _DATA / "weights"


def _settled(path: Path) -> bytes:
    """Return the program's bytes without the day it was made on and who made it."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model.FromString(path.read_bytes())
    spec.description.metadata.userDefined.clear()
    return bytes(spec.SerializeToString(deterministic=True))
