"""Chat templates for models whose makers left theirs in code: each lays a conversation out as that code did."""

# github.com/THUDM/ChatGLM3, PROMPT.md. Role, an empty line of metadata, words; the words were encoded by themselves,
# which puts SentencePiece's blank before them. The head of her turn ends with its newline, which the original let the
# model say and then cut off.
_CHATGLM3 = (
    "[gMASK]sop{% for m in messages %}<|{{ m.role }}|>\n {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# github.com/QwenLM/Qwen, `make_context`.
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# github.com/baichuan-inc/Baichuan2, `build_chat_input`: the system's text bare, a token before each turn, none after.
_BAICHUAN2 = (
    "{% for m in messages %}{% if m.role == 'user' %}USER{% elif m.role == 'assistant' %}ASSISTANT{% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}ASSISTANT{% endif %}"
)
# arXiv:2307.09288, appendix A.3.3, as github.com/ymcui/Chinese-LLaMA-Alpaca-2 uses it.
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set talk = messages[1:] %}{% else %}{% set system = '' %}{% set talk = messages %}{% endif %}"
    "{% for m in talk %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ system if loop.first else '' }}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
# github.com/lm-sys/FastChat, the conversation `vicuna_v1.1`, which LLaVA-1.5 was tuned in.
_VICUNA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}"
    "USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEMPLATES = {"chatglm3": _CHATGLM3, "chatml": _CHATML, "llama2": _LLAMA2, "vicuna": _VICUNA}


def baichuan2(user: str, assistant: str) -> str:
    """Return Baichuan 2's template; its two marks are known by their numbers, their spelling comes from the model."""
    return _BAICHUAN2.replace("USER", user).replace("ASSISTANT", assistant)
