"""The torchvision shim makes timm and transformers importable; where torchvision works, it changes nothing."""

import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("timm") is None, reason="needs timm")
def test_timm_imports_after_it_and_twice_is_harmless():
    program = (
        "from edgekd._torchvision import ensure\n"
        "first = ensure(); assert ensure() == first; assert first in ('absent', 'native', 'shimmed')\n"
        "import timm, torch; assert timm.create_model('test_resnet').eval()(torch.zeros(1, 3, 32, 32)).shape[0] == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_another_error_of_torchvision_is_not_hidden(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('something else')")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom edgekd._torchvision import ensure\nensure()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "RuntimeError: something else" in done.stderr
