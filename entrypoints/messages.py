"""What the user interface says, in Chinese and in English."""

import os
from typing import Literal

Language = Literal["zh", "en"]

_MESSAGES: dict[str, dict[Language, str]] = {
    "waking": {"zh": "正在叫醒{name}……", "en": "Waking {name} up ..."},
    "examples": {"zh": "第一次见面，先熟悉一下说话的方式", "en": "First meeting: learning how she talks"},
    "ready": {
        "zh": "直接说话就好。Ctrl-C 打断她，Esc 再按回车换行，/help 看命令，/quit 离开。",
        "en": "Just talk. Ctrl-C interrupts her, Esc then Enter starts a new line, /help lists commands, /quit leaves.",
    },
    "ask_name": {"zh": "怎么称呼你？（直接回车跳过）", "en": "What shall she call you? (Enter skips) "},
    "told_name": {"zh": "我叫{name}。", "en": "My name is {name}."},
    "you": {"zh": "你", "en": "You"},
    "interrupted": {"zh": "（被打断了）", "en": "(interrupted)"},
    "trimmed": {"zh": "（太早的 {count} 轮已经不在眼前了）", "en": "({count} early turns have left her view)"},
    "journalled": {
        "zh": "（长期记忆暂时连不上，这几句先记在日记里，回头补上）",
        "en": "(long-term memory is away; this is kept in the journal and will be stored later)",
    },
    "broken_text": {
        "zh": "（有几个字节不是 UTF-8，已用 � 代替）",
        "en": "(some bytes were not UTF-8 and were replaced)",
    },
    "bye": {"zh": "回头见～", "en": "See you."},
    "rated_good": {"zh": "记下了：这句不错。", "en": "Noted: a good reply."},
    "rated_bad": {"zh": "记下了：这句不好。", "en": "Noted: a bad reply."},
    "mood": {
        "zh": "{word}（愉快 {v:+.2f}，激动 {a:+.2f}，主导 {d:+.2f}）",
        "en": "{word} (valence {v:+.2f}, arousal {a:+.2f}, dominance {d:+.2f})",
    },
    "exported": {"zh": "已写入 {path}（{turns} 轮）", "en": "Wrote {path} ({turns} turns)"},
    "new_conversation": {"zh": "新的一页。她还记得你是谁。", "en": "A new page. She still knows who you are."},
    "no_history": {"zh": "还没有说过话。", "en": "Nothing has been said yet."},
    "unknown_command": {"zh": "没有 {command} 这个命令。/help 看全部。", "en": "No command {command}. See /help."},
    "now_with": {"zh": "现在陪你的是{name}。", "en": "You are now with {name}."},
    "error": {"zh": "出错了：{problem}", "en": "Error: {problem}"},
    "remedy": {"zh": "怎么办：{remedy}", "en": "Remedy: {remedy}"},
    "starter_terms": {
        "zh": "她现在的大脑是 Gemma 3 270M，受 Gemma 使用条款约束（见 NOTICE）。",
        "en": "Her brain for now is Gemma 3 270M, under the Gemma Terms of Use (see NOTICE).",
    },
    "expert.name": {"zh": "名字", "en": "name"},
    "expert.title": {"zh": "称呼", "en": "title"},
    "expert.tag": {"zh": "标记", "en": "tag"},
    "expert.kind": {"zh": "知识", "en": "kind"},
    "expert.kind.core": {"zh": "核心", "en": "core"},
    "expert.kind.style": {"zh": "风格", "en": "style"},
    "expert.kind.fact": {"zh": "事实", "en": "fact"},
    "expert.weights": {"zh": "由谁回答", "en": "answered by"},
    "expert.base": {"zh": "基座", "en": "base"},
    "expert.temperature": {"zh": "温度", "en": "temperature"},
    "expert.precision": {"zh": "精度", "en": "precision"},
    "expert.priority": {"zh": "优先级", "en": "priority"},
    "expert.pinned": {"zh": "（常驻）", "en": " (pinned)"},
    "expert.in_favour": {"zh": "归它的", "en": "in favour"},
    "expert.against": {"zh": "不归它的", "en": "against"},
    "expert.examples": {"zh": "例句", "en": "examples"},
    "expert.folder": {"zh": "文件夹", "en": "folder"},
    "expert.adapter": {"zh": "自己的适配器", "en": "its own adapter"},
    "expert.no_adapter": {"zh": "基础模型（还没有自己的适配器）", "en": "the base model (no adapter of its own yet)"},
    "expert.own_model": {"zh": "自己的模型（{use}）", "en": "a model of its own ({use})"},
    "expert.base_model": {"zh": "基础人格", "en": "her base self"},
    "expert.runners_up": {"zh": "其次：{others}", "en": "next: {others}"},
    "expert.refused": {"zh": "没有采用 {name}：{why}", "en": "refused {name}: {why}"},
    "expert.added": {"zh": "「{title}」已加入：{folder}", "en": "Added {title}: {folder}"},
    "expert.removed": {"zh": "已移除 {name}", "en": "Removed {name}"},
    "help./help": {"zh": "这张表", "en": "this list"},
    "help./history": {"zh": "看这次对话说过什么", "en": "show this conversation"},
    "help./characters": {"zh": "有哪些角色；/characters 名字 换人", "en": "list characters; /characters NAME switches"},
    "help./mood": {"zh": "她现在的心情", "en": "how she feels"},
    "help./good": {"zh": "刚才那句说得好", "en": "rate her last reply up"},
    "help./bad": {"zh": "刚才那句不好", "en": "rate her last reply down"},
    "help./new": {"zh": "开始新的对话", "en": "begin a new conversation"},
    "help./export": {"zh": "把对话存成文件；/export 路径", "en": "save the conversation; /export PATH"},
    "help./quit": {"zh": "离开（也可以按 Ctrl-D）", "en": "leave (or press Ctrl-D)"},
}


def say(key: str, language: Language, **values: object) -> str:
    """Return a message with its values filled in."""
    return _MESSAGES[key][language].format(**values)


def preferred() -> Language:
    """Return the language to speak where no settings could be read yet."""
    return "en" if os.environ.get("ZISHU_LANGUAGE") == "en" else "zh"
