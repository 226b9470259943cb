"""Chat templates of many families, as data.

Each is written here in its family's structure, as the family documents it, and leaves out what does not bear on the
kernel: images, calls of tools in the history. ``source`` names the document and the licence of the model that it
describes; no text of a template is copied.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family's chat template, and what a prompt in it must look like.

    Attributes:
        template: the template.
        source: where its structure is documented, and the licence.
        begins: how a prompt begins; ``{system}`` is where the system's text goes.
        after: what stands behind the user's text, reasoning turned off, up to where the reply begins.
        special: tokens of the family beside ``<s>`` and ``</s>``.
    """

    template: str
    source: str
    begins: str
    after: str
    special: tuple[str, ...] = ()


_EACH = "{% for m in messages %}"
_END = "{% endfor %}"
_ASKED = "{% if add_generation_prompt %}"
_CHATML = _EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + _END
_ALTERNATE = (
    "{% set turns = messages | rejectattr('role', 'equalto', 'system') | list %}{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    + _END
)
_CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
_THINK = ("<think>", "</think>")

FAMILIES: dict[str, Family] = {
    "chatml": Family(
        _CHATML + _ASKED + "<|im_start|>assistant\n{% endif %}",
        "ChatML, as SmolLM2 and Qwen 2.5 use it (Apache-2.0)",
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        _CHATML_MARKS,
    ),
    "qwen3": Family(
        _CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip('\\n') }}")
        + _ASKED
        + "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}",
        "Qwen3's model card: hard switch between modes (Apache-2.0)",
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        (*_CHATML_MARKS, *_THINK),
    ),
    "qwen3-thinking": Family(
        _CHATML + _ASKED + "<|im_start|>assistant\n<think>\n{% endif %}",
        "Qwen3-Thinking-2507's model card: the template opens the block (Apache-2.0)",
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        (*_CHATML_MARKS, *_THINK),
    ),
    "smollm3": Family(
        "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}<|im_start|>system\n"
        "Today Date: {{ strftime_now('%d %B %Y') }}\n"
        "Reasoning Mode: {{ '/think' if enable_thinking else '/no_think' }}\n\n"
        "{{ messages[0].content if messages[0].role == 'system' }}<|im_end|>\n"
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        + _END
        + _ASKED
        + "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}",
        "SmolLM3's model card: extended thinking mode, date (Apache-2.0)",
        "<|im_start|>system\nToday Date: {date}\nReasoning Mode: /no_think\n\n{system}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
        (*_CHATML_MARKS, *_THINK),
    ),
    "olmo3-think": Family(
        _CHATML + _ASKED + "<|im_start|>assistant\n<think>{% endif %}",
        "Olmo 3 Think's model card (Apache-2.0)",
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n</think>\n\n",
        _CHATML_MARKS,
    ),
    "hunyuan": Family(
        "<s>{{ messages[0].content if messages[0].role == 'system' }}<|split|>"
        "{% for m in messages if m.role != 'system' %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}"
        "{% if m.role == 'user' and loop.last and enable_thinking is defined and not enable_thinking %}"
        "/no_think{% endif %}"
        "{{ m.content }}"
        + _END
        + _ASKED
        + "<|bot|>{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
        "{% endif %}",
        "Hunyuan-A13B's model card: fast and slow thinking (Tencent Hunyuan Community Licence)",
        "<s>{system}<|split|><|user|>/no_think",
        "<|bot|><think>\n\n</think>\n",
        ("<|split|>", "<|user|>", "<|bot|>"),
    ),
    "deepseek-r1": Family(
        "<s>{{ messages[0].content if messages[0].role == 'system' }}{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}"
        "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}</s>{% endif %}"
        + _END
        + _ASKED
        + "<｜Assistant｜><think>\n{% endif %}",
        "DeepSeek-R1's model card: usage recommendations (MIT)",
        "<s>{system}<｜User｜>",
        "<｜Assistant｜><think>\n\n</think>\n\n",
        ("<｜User｜>", "<｜Assistant｜>", *_THINK),
    ),
    "deepseek-r1-unopened": Family(
        "<s>{{ messages[0].content if messages[0].role == 'system' }}{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>"
        "{% if '<think>' in m.content and '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}"
        "{{ m.content }}{% endif %}</s>{% endif %}" + _END + _ASKED + "<｜Assistant｜>{% endif %}",
        "DeepSeek-R1 as first released: the model opens the block (MIT)",
        "<s>{system}<｜User｜>",
        "<｜Assistant｜><think>\n\n</think>\n\n",
        ("<｜User｜>", "<｜Assistant｜>"),
    ),
    "deepseek-v3.1": Family(
        "{% if thinking is not defined %}{% set thinking = false %}{% endif %}"
        "<s>{{ messages[0].content if messages[0].role == 'system' }}{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜></think>{{ m.content }}</s>"
        "{% endif %}"
        + _END
        + _ASKED
        + "<｜Assistant｜>{{ '<think>' if thinking else '</think>' }}{% endif %}",
        "DeepSeek-V3.1's model card: chat template, non-thinking (MIT)",
        "<s>{system}<｜User｜>",
        "<｜Assistant｜></think>",
        ("<｜User｜>", "<｜Assistant｜>", *_THINK),
    ),
    "glm4.5": Family(
        "[gMASK]<sop>"
        + _EACH
        + "<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}"
        "{% if m.role == 'user' and enable_thinking is defined and not enable_thinking %}/nothink{% endif %}"
        + _END
        + _ASKED
        + "<|assistant|>{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking }}{% endif %}",
        "GLM-4.5's model card: thinking mode (MIT)",
        "[gMASK]<sop><|system|>\n{system}<|user|>\n",
        "/nothink<|assistant|>\n<think></think>",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
    ),
    "seed-oss": Family(
        "{% if thinking_budget is defined and thinking_budget == 0 %}<s>system\nReply without thinking.</s>"
        "{% endif %}"
        + _EACH
        + "<s>{{ m.role }}\n{{ m.content }}</s>"
        + _END
        + _ASKED
        + "<s>assistant\n{% if thinking_budget is defined and thinking_budget == 0 %}<seed:think></seed:think>"
        "{% endif %}{% endif %}",
        "Seed-OSS's model card: thinking budget (Apache-2.0)",
        "<s>system\nReply without thinking.</s><s>system\n{system}</s><s>user\n",
        "</s><s>assistant\n<seed:think></seed:think>",
    ),
    "minimax-m2": Family(
        "]~!b[{% for m in messages %}]~b]{{ 'ai' if m.role == 'assistant' else m.role }}\n{{ m.content }}[e~[\n"
        + _END
        + _ASKED
        + "]~b]ai\n<think>\n{% endif %}",
        "MiniMax-M2's model card: the template opens the block (MIT)",
        "]~!b[]~b]system\n{system}[e~[\n]~b]user\n",
        "[e~[\n]~b]ai\n<think>\n\n</think>\n\n",
    ),
    "gpt-oss": Family(
        "{% set reasoning_effort = reasoning_effort | default('medium') %}<|start|>system<|message|>"
        "Current date: {{ strftime_now('%Y-%m-%d') }}\n\nReasoning: {{ reasoning_effort }}<|end|>"
        + _EACH
        + "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
        "{% else %}"
        "<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
        + _END
        + _ASKED
        + "<|start|>assistant{% endif %}",
        "OpenAI's harmony response format (Apache-2.0)",
        "<|start|>system<|message|>Current date: {date}\n\nReasoning: low<|end|>"
        "<|start|>developer<|message|>{system}<|end|><|start|>user<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        ("<|start|>", "<|message|>", "<|end|>", "<|channel|>"),
    ),
    "command-a-reasoning": Family(
        "{% if reasoning is not defined %}{% set reasoning = true %}{% endif %}<s>"
        + _EACH
        + "<|START_OF_TURN_TOKEN|>"
        "<|{{ {'user': 'USER', 'system': 'SYSTEM', 'assistant': 'CHATBOT'}[m.role] }}_TOKEN|>"
        "{{ m.content }}<|END_OF_TURN_TOKEN|>" + _END + _ASKED + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        "{% if reasoning %}<|START_THINKING|>{% else %}<|START_THINKING|><|END_THINKING|>{% endif %}{% endif %}",
        "Command A Reasoning's documentation: reasoning on and off (CC-BY-NC-4.0)",
        "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{system}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
        "<|USER_TOKEN|>",
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>",
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    "granite3": Family(
        "<|start_of_role|>system<|end_of_role|>Today's Date: {{ strftime_now('%B %d, %Y') }}.\n"
        "{{ messages[0].content if messages[0].role == 'system' }}"
        "{% if thinking %} Think between <think></think>.{% endif %}"
        "<|end_of_text|>\n{% for m in messages if m.role != 'system' %}<|start_of_role|>{{ m.role }}<|end_of_role|>"
        "{{ m.content }}<|end_of_text|>\n"
        + _END
        + _ASKED
        + "<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        "Granite 3.3's model card: thinking=True (Apache-2.0)",
        "<|start_of_role|>system<|end_of_role|>Today's Date: {date}.\n{system}<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>",
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    "exaone4": Family(
        _EACH + "[|{{ m.role }}|]\n{{ m.content }}[|endofturn|]\n" + _END + _ASKED + "[|assistant|]\n"
        "{% if enable_thinking is defined and enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}",
        "EXAONE 4's model card: reasoning and non-reasoning mode (EXAONE licence)",
        "[|system|]\n{system}[|endofturn|]\n[|user|]\n",
        "[|endofturn|]\n[|assistant|]\n<think>\n\n</think>\n\n",
        ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),
    ),
    "mistral-small-4": Family(
        "{% set reasoning_effort = reasoning_effort | default('none') %}"
        "{% if reasoning_effort not in ['none', 'high'] %}"
        "{{ raise_exception('no such effort') }}{% endif %}<s>{% if messages[0].role == 'system' %}[SYSTEM_PROMPT]"
        "{{ messages[0].content }}[/SYSTEM_PROMPT]{% endif %}"
        '[MODEL_SETTINGS]{"reasoning_effort": "{{ reasoning_effort }}"}'
        "[/MODEL_SETTINGS]{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}</s>{% endif %}" + _END,
        "Mistral Small 4's model card: reasoning effort (Apache-2.0)",
        '<s>[SYSTEM_PROMPT]{system}[/SYSTEM_PROMPT][MODEL_SETTINGS]{"reasoning_effort": "none"}[/MODEL_SETTINGS][INST]',
        "[/INST]",
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    ),
    "mistral-v3": Family(
        _ALTERNATE + "<s>{% for m in turns %}{% if m.role == 'user' %}[INST] "
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
        "{% endif %}{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}" + _END,
        "Mistral's cookbook: tokenization of v3 (Apache-2.0)",
        "<s>[INST] {system}\n\n",
        "[/INST]",
        ("[INST]", "[/INST]"),
    ),
    "llama2": Family(
        _ALTERNATE + "{% for m in turns %}{% if m.role == 'user' %}<s>[INST] "
        "{% if loop.first and messages[0].role == 'system' %}"
        "<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }} </s>{% endif %}" + _END,
        "Meta's guide to Llama 2's prompts (Llama 2 Community Licence)",
        "<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n",
        " [/INST]",
    ),
    "llama3": Family(
        "<s>{% set own = messages[0].role == 'system' %}<|start_header_id|>system<|end_header_id|>\n\n"
        "{% if tools is defined and tools %}Environment: ipython\n"
        "{% endif %}Today Date: {{ strftime_now('%d %b %Y') }}\n\n"
        "{{ messages[0].content | trim if own }}<|eot_id|>{% for m in messages if m.role != 'system' %}"
        "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        + _END
        + _ASKED
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "Meta's documentation of Llama 3.1: prompt format, tools, date (Llama 3.1 Community Licence)",
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: {date}\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "llama4": Family(
        "<s>" + _EACH + "<|header_start|>{{ m.role }}<|header_end|>\n\n"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}"
        "{% endfor %}{% endif %}"
        "<|eot|>" + _END + _ASKED + "<|header_start|>assistant<|header_end|>\n\n{% endif %}",
        "Meta's documentation of Llama 4 (Llama 4 Community Licence)",
        "<s><|header_start|>system<|header_end|>\n\n{system}<|eot|><|header_start|>user<|header_end|>\n\n",
        "<|eot|><|header_start|>assistant<|header_end|>\n\n",
        ("<|header_start|>", "<|header_end|>", "<|eot|>"),
    ),
    "gemma2": Family(
        "<s>{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + _ALTERNATE
        + _EACH
        + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        + _END
        + _ASKED
        + "<start_of_turn>model\n{% endif %}",
        "Google's documentation of Gemma: formatting (Gemma Terms of Use)",
        "<s><start_of_turn>user\n{system}\n\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "gemma3": Family(
        _ALTERNATE
        + "<s>{% for m in turns %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if loop.first and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content | trim }}<end_of_turn>\n" + _END + _ASKED + "<start_of_turn>model\n{% endif %}",
        "Google's documentation of Gemma 3: system instructions in the user's turn (Gemma Terms of Use)",
        "<s><start_of_turn>user\n{system}\n\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "gemma4": Family(
        "<s>" + _EACH + "<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if m.role == 'system' and enable_thinking %}<|think|>{% endif %}{{ m.content }}<turn|>\n"
        + _END
        + _ASKED
        + "<|turn>model\n{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}{% endif %}",
        "Google's documentation of Gemma 4: thinking mode (Apache-2.0)",
        "<s><|turn>system\n{system}<turn|>\n<|turn>user\n",
        "<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
        ("<|turn>", "<turn|>", "<|channel>", "<channel|>"),
    ),
    "phi3": Family(
        _EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + _END + _ASKED + "<|assistant|>\n{% endif %}",
        "Phi-3's model card: chat format (MIT)",
        "<|system|>\n{system}<|end|>\n<|user|>\n",
        "<|end|>\n<|assistant|>\n",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "phi4": Family(
        _EACH
        + "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>"
        + _END
        + _ASKED
        + "<|im_start|>assistant<|im_sep|>{% endif %}",
        "Phi-4's model card: input formats (MIT)",
        "<|im_start|>system<|im_sep|>{system}<|im_end|><|im_start|>user<|im_sep|>",
        "<|im_end|><|im_start|>assistant<|im_sep|>",
        (*_CHATML_MARKS, "<|im_sep|>"),
    ),
    "kimi-k2": Family(
        _EACH
        + "<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>"
        + _END
        + _ASKED
        + "<|im_assistant|>assistant<|im_middle|>{% endif %}",
        "Kimi K2's model card (Modified MIT)",
        "<|im_system|>system<|im_middle|>{system}<|im_end|><|im_user|>user<|im_middle|>",
        "<|im_end|><|im_assistant|>assistant<|im_middle|>",
        ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
    ),
    "tulu": Family(
        _EACH + "<|{{ m.role }}|>\n{{ m.content }}\n" + _END + _ASKED + "<|assistant|>\n{% endif %}",
        "Tulu's and OLMo 2's model cards (Apache-2.0)",
        "<|system|>\n{system}\n<|user|>\n",
        "\n<|assistant|>\n",
    ),
    "vicuna": Family(
        "<s>{{ messages[0].content if messages[0].role == 'system' }} {% for m in messages if m.role != 'system' %}"
        "{{ 'USER: ' ~ m.content if m.role == 'user' else ' ASSISTANT: ' ~ m.content ~ '</s>' }}"
        + _END
        + _ASKED
        + " ASSISTANT:{% endif %}",
        "FastChat's documentation of Vicuna 1.1 (Apache-2.0)",
        "<s>{system} USER: ",
        " ASSISTANT:",
    ),
    "alpaca": Family(
        "{% for m in messages if m.role != 'system' %}### {{ 'Instruction' if m.role == 'user' else 'Response' }}:\n"
        "{{ m.content }}\n\n" + _END + _ASKED + "### Response:\n{% endif %}",
        "Stanford Alpaca's format, which has no system turn and drops it (Apache-2.0)",
        "### Instruction:\n{system}\n\n",
        "\n\n### Response:\n",
    ),
    "smolvlm": Family(
        "<s>"
        + _EACH
        + "{{ m.role | capitalize }}: {% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
        "<end_of_utterance>\n" + _END + _ASKED + "Assistant:{% endif %}",
        "SmolVLM's model card: content is a list of parts (Apache-2.0)",
        "<s>System: {system}<end_of_utterance>\nUser: ",
        "<end_of_utterance>\nAssistant:",
        ("<end_of_utterance>",),
    ),
}
