"""What ``ktlib.ila`` needs: torch at import, peft for a model that has its adapters."""

import subprocess
import sys

import pytest

from ktlib.checks import require_extra

WITHOUT_EXTRAS = """
import sys
for name in ("peft", "transformers", "safetensors", "accelerate", "pandas", "sklearn"):
    sys.modules[name] = None  # any import of it fails
import importlib, pkgutil, torch, ktlib.ila
for module in pkgutil.iter_modules(ktlib.ila.__path__):
    importlib.import_module(f"ktlib.ila.{module.name}")
from ktlib.ila import freeze_unimportant, rank_layers, rank_layers_full, update_norms
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
before = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
data = [torch.ones(3, 2), torch.zeros(3, 2)]
loss = lambda model, batch: model(batch).square().mean()
ranking = rank_layers_full(model, before, data, loss=loss)
freeze_unimportant(model, ranking, keep=0.5)
for call in (lambda: rank_layers(model, data, loss=loss), lambda: ranking.lora_config(0.5)):
    try:
        call()
    except ImportError as error:
        print(error)
"""


@pytest.mark.slow
def test_without_extras_all_modules_import_and_errors_name_the_extra():
    run = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("peft" in line and "[lora]" in line for line in lines)


def test_a_missing_module_of_an_installed_library_is_not_hidden():
    assert require_extra("math", "lora").pi > 3
    with pytest.raises(ImportError, match=r"needs nowhere: .*\[lora\]"):
        require_extra("nowhere.inside", "lora")
