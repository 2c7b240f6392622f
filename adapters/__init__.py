"""One folder per port, one module per backend; each exports `Config` and `build(config)`."""

import sys

# The speech libraries require torchaudio but never import it; transformers imports it wherever it lies, and PyPI's
# build then wants CUDA's libraries. A module that is None counts as not installed, for Python and for transformers.
sys.modules.setdefault("torchaudio", None)  # type: ignore[arg-type]
