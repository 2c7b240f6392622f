"""A server of the OpenAI protocol in a process of its own: llama.cpp's, by python -m tests.llama_server GGUF KEY.

Prints its address once it listens, and ends with its standard input, so that it never outlives the test.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Gemma's own template; a system message, which it does not know, opens the user's first line.
_GEMMA = (
    "{% set intro = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ (intro if loop.first else '') + m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@contextmanager
def llama_server(gguf: Path, *, key: str = "sesame") -> Iterator[str]:
    """Run the server while the block lasts and give its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.llama_server", str(gguf), key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.terminate()


def main(gguf: str, key: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx, params.n_parallel = 4096, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys = [key]
    params.verbosity = -1
    params.warmup = False
    if "gemma" in gguf:
        params.chat_template = _GEMMA
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
