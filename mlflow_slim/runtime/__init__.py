"""What a served model needs, and nothing else: this package is copied into every model that is logged.

A bundle is a folder with ``slim.json``, ``manifest.json``, a tokenizer and weights. `load` opens one and gives
a predictor; ``pyfunc`` puts raw strings in front of it and labels behind it. The imports are numpy, onnxruntime
and tokenizers (pandas in ``pyfunc``; torch and transformers inside the functions that open a torch bundle), and
only relative ones among these files, so that the copy works under any name and without mlflow_slim installed.
"""

from .bundle import Bundle, BundleError, read_bundle
from .generation import TextGenerator
from .predictor import Predictor, load

__all__ = ["Bundle", "BundleError", "Predictor", "TextGenerator", "load", "read_bundle"]
