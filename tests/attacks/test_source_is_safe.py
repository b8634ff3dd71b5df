"""Nothing in the package runs, unpickles or unpacks what a file says; and the search for it finds what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

import qgmil
from attacks.unsafe_calls import unsafe_calls

SOURCE = Path(qgmil.__file__).parent
BAD = {
    "import pickle\npickle.load(f)": "pickle.load",
    "import pickle as p\np.loads(b)": "pickle.loads",
    "from pickle import load": "imports pickle.load",
    "from pickle import Unpickler as U\nU(f).load()": "imports pickle.Unpickler",
    "import pickle\nclass U(pickle.Unpickler): pass": "pickle.Unpickler",
    "import pickle\nread = pickle.loads\nread(b)": "pickle.loads",
    "import pickle\ngetattr(pickle, 'loads')(b)": "pickle.loads",
    "import importlib\nimportlib.import_module('pickle').loads(b)": "pickle.loads",
    "import _pickle": "imports _pickle",
    "import marshal": "imports marshal",
    "import shelve\nshelve.open('x')": "imports shelve",
    "from dill import loads": "imports dill.loads",
    "import joblib\njoblib.load('x')": "imports joblib",
    "def f():\n    from joblib import load\n    load('x')": "imports joblib.load",
    "eval('1')": "eval",
    "exec(code)": "exec",
    "compile(text, 'x', 'exec')": "compile",
    "import builtins\nbuiltins.eval('1')": "builtins.eval",
    "run = eval\nrun('1')": "eval",
    "list(map(eval, lines))": "eval",
    "__import__('os').system('x')": "__import__",
    "import torch\ntorch.load('x')": "without weights_only=True",
    "import torch\ntorch.load('x', weights_only=False)": "without weights_only=True",
    "import torch\ntorch.load('x', weights_only=safe)": "without weights_only=True",
    "import torch\ntorch.load('x', weights_only=1)": "without weights_only=True",
    "import torch as t\nt.load('x')": "without weights_only=True",
    "from torch import load as read\nread('x')": "without weights_only=True",
    "from torch.serialization import load\nload('x')": "without weights_only=True",
    "import torch\nfunction = torch.load\nfunction('x')": "without weights_only=True",
    "import torch\nmap(torch.load, files)": "torch.load is passed on",
    "import torch\ntorch.load('x', **options)": "without weights_only=True",
    "import torch\ntorch.load('x', weights_only=True, **options)": "options that are not seen",
    "import torch\ntorch.jit.load('x')": "without weights_only=True",
    "import torch\ntorch.serialization.add_safe_globals([f])": "add_safe_globals",
    "model.load_from_checkpoint('x', weights_only=False)": "another weights_only than True",
    "import numpy as np\nnp.load('x')": "without allow_pickle=False",
    "import numpy as np\nnp.load('x', allow_pickle=True)": "with allow_pickle",
    "import numpy\nnumpy.load('x', allow_pickle=flag)": "with allow_pickle",
    "from numpy import load\nload('x')": "without allow_pickle=False",
    "import numpy as np\nnp.lib.format.read_array(f)": "without allow_pickle=False",
    "import yaml\nyaml.load(f, Loader=yaml.Loader)": "instead of safe_load",
    "import yaml\nyaml.load(f)": "instead of safe_load",
    "from yaml import unsafe_load\nunsafe_load(f)": "yaml.unsafe_load",
    "from yaml import full_load as g\ng(f)": "yaml.full_load",
    "import os\nos.system('x')": "os.system",
    "from os import popen\npopen('x')": "os.popen",
    "import subprocess\nsubprocess.run('x', shell=True)": "with a shell",
    "from subprocess import Popen\nPopen('x', shell=flag)": "with a shell",
    "import tarfile\ntarfile.open('x').extractall()": "extractall",
    "import zipfile\nwith zipfile.ZipFile('x') as z:\n    z.extractall('.')": "z.extractall",
    "import zipfile\nzipfile.ZipFile('x').extract('a')": "extract",
    "import shutil\nshutil.unpack_archive('x')": "shutil.unpack_archive",
    "from scipy.io import loadmat\nloadmat('x')": "scipy.io.loadmat",
}
GOOD = (
    "import re\nre.compile('x')",
    "import torch\ntorch.compile(model)\nmodel.compile()\nmodel.eval()",
    "import torch\ntorch.load('x', map_location='cpu', weights_only=True)",
    "import numpy as np\nnp.load('x', allow_pickle=False)",
    "import yaml\nyaml.safe_load(f)\nyaml.safe_dump(x)",
    "import pickle\ntry: f()\nexcept pickle.UnpicklingError: pass",
    "import json\njson.load(f)\njson.loads(t)",
    "import subprocess\nsubprocess.run(['x'], shell=False)",
    "from safetensors.torch import load_file\nload_file('x')",
    "module.load_state_dict(state)",
)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_the_package_runs_nothing_that_files_say(path: Path) -> None:
    found = unsafe_calls(path.read_text(encoding="utf-8"))
    assert not found, "\n".join(f"{path}:{line}: {what}" for line, what in found)


@pytest.mark.parametrize(("source", "what"), BAD.items())
def test_what_is_unsafe_is_found(source: str, what: str) -> None:
    assert any(what in found.what for found in unsafe_calls(source)), unsafe_calls(source)


@pytest.mark.parametrize("source", GOOD)
def test_what_is_safe_is_left_alone(source: str) -> None:
    assert unsafe_calls(source) == []
