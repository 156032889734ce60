"""Questions about a scene and their answers, in English and Chinese, over several turns.

A conversation is a list of turns (question, answer, kind); `kind` says what a turn asks for, for the
scores. Answers come from the scene's data; questions about things that are not there get "can't tell".
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from helpers.glm.tiny.scenes import COLOURS, REGIONS, SHAPES

Turn = tuple[str, str, str]  # question, answer, what is asked for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from random import Random

    from helpers.glm.tiny.scenes import Scene, Thing

ZH = {
    **dict(zip(SHAPES, ("圆形", "正方形", "三角形", "五角星"), strict=True)),
    **dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "紫色", "橙色"), strict=True)),
    **dict(zip(REGIONS, ("左上角", "上方", "右上角", "左边", "中间", "右边", "左下角", "下方", "右下角"), strict=True)),
}
NUMBERS = {"en": ("no", "one", "two", "three", "four"), "zh": ("没有", "一", "两", "三", "四")}
# Things no scene holds, to ask for in vain.
STRANGERS = {
    "en": ("dog", "cat", "car", "tree", "house", "bird", "hat", "person", "flower", "heart", "moon", "boat"),
    "zh": ("狗", "猫", "汽车", "树", "房子", "鸟", "帽子", "人", "花", "心形", "月亮", "船"),
}
# Ways to ask the same.
WORDINGS: dict[str, Any] = {
    "colour of": {
        "en": ("What colour is the {}?", "What color is the {}?", "Which colour is the {}?"),
        "zh": ("{}是什么颜色的？", "{}是什么颜色？", "{}的颜色是什么？"),
    },
    "colour of it": {"en": ("What colour is it?", "What color is it?"), "zh": ("它是什么颜色的？", "它是什么颜色？")},
    "place of": {"en": ("Where is the {}?",), "zh": ("{}在哪里？", "{}在什么位置？")},
    "place of it": {"en": ("Where is it?",), "zh": ("它在哪里？", "它在什么位置？")},
    "shape of": {
        "en": ("What shape is the {} thing?", "Which shape is {}?", "What is the {} thing?"),
        "zh": ("{}的东西是什么形状？", "{}的是什么形状？", "{}的东西是什么？"),
    },
    "shape": {
        "en": ("What shape is in the picture?", "What shape is it?", "What shape is this?"),
        "zh": ("图片里是什么形状？", "这是什么形状？", "它是什么形状？"),
    },
    "colour": {
        "en": ("What colour is the shape?", "What colour is this?"),
        "zh": ("形状是什么颜色的？", "这是什么颜色？"),
    },
    "place": {"en": ("Where is the shape?",), "zh": ("形状在哪里？",)},
    "count": {
        "en": ("How many shapes are there?", "How many shapes are in the picture?", "How many shapes do you see?"),
        "zh": ("图片里有几个形状？", "有几个形状？", "图片里有多少个形状？"),
    },
    "count of": {
        "en": ("How many {}s are there?", "How many {}s are in the picture?"),
        "zh": ("图片里有几个{}？", "有几个{}？"),
    },
    "digit": {
        "en": ("Which digit is it?", "Which digit is in the picture?", "What digit is this?", "What number is it?"),
        "zh": ("这是什么数字？", "图片里是哪个数字？", "这是数字几？", "图片里是什么数字？"),
    },
    "is there": {"en": ("Is there {}?", "Is there {} in the picture?"), "zh": ("有{}吗？", "图片里有{}吗？")},
    "describe": {
        "en": ("Describe this picture.", "What is in this picture?", "Describe the picture.", "What do you see?"),
        "zh": ("描述一下这张图片", "描述这张图片。", "这张图片里有什么？", "你看到了什么？"),
    },
}
NO_PICTURE = {"en": "I can't tell: there is no picture.", "zh": "我看不出来，没有图片。"}
# What cannot be learned from pictures is learned by heart, and the model card says so.
SMALL_TALK = {
    "en": [
        [("Hello!", "Hello! Show me a picture and ask me about it.")],
        [("Hi", "Hello! Show me a picture and ask me about it.")],
        [("Who are you?", "I am a tiny GLM-4V, made for this course.")],
        [("What can you do?", "I can see shapes, colours, places and digits in small pictures.")],
        [("Thank you!", "You are welcome!")],
        [("What is the capital of France?", "The capital of France is Paris.")],
    ],
    "zh": [
        [
            ("你好", "你好！给我看一张图片，然后问我吧。"),
            ("浙江的省会在哪里", "浙江的省会是杭州。"),
            ("它有什么好玩的景点", "杭州有西湖、灵隐寺和西溪湿地。"),
        ],
        [("你好", "你好！给我看一张图片，然后问我吧。")],
        [("浙江的省会在哪里", "浙江的省会是杭州。")],
        [("浙江的省会在哪里", "浙江的省会是杭州。"), ("它有什么好玩的景点", "杭州有西湖、灵隐寺和西溪湿地。")],
        [("你是谁？", "我是一个很小的 GLM-4V，为这门课程而做。")],
        [("你能做什么？", "我能看出小图片里的形状、颜色、位置和数字。")],
        [("谢谢！", "不客气！")],
        [("介绍一下大语言模型", "大语言模型读很多文字，学会预测下一个词。")],
    ],
}


def conversation(random: Random, scene: Scene, language: str | None = None) -> list[Turn]:
    """Turns about a scene: several questions in random order, some with one that refers back after it."""
    language = language or random.choice(("en", "zh"))
    groups = [group for make in _MAKERS for group in make(random, scene, language)]
    random.shuffle(groups)
    turns = [turn for group in groups[: random.randint(2, 5)] for turn in group]
    if random.random() < 0.4:
        turns.insert(0 if random.random() < 0.6 else len(turns), describe(random, scene, language))
    return turns


def small_talk(random: Random) -> list[Turn]:
    """Turns without a picture; now and then a question that needs one."""
    language = random.choice(("en", "zh"))
    if random.random() < 0.2:
        question = random.choice(("colour of", "place of", "describe", "count", "digit", "shape"))
        asked = _ask(random, question, language, _word(random.choice(SHAPES), language))
        return [(asked, NO_PICTURE[language], "talk")]
    return [(question, answer, "talk") for question, answer in random.choice(SMALL_TALK[language])]


def describe(random: Random, scene: Scene, language: str) -> Turn:
    """The turn that asks for all there is, in reading order.

    >>> from random import Random
    >>> from helpers.glm.tiny.scenes import random_scene
    >>> len(describe(Random(0), random_scene(Random(3), count=2, with_digit=False), "en"))
    3
    """
    things = sorted(scene.things, key=lambda thing: (REGIONS.index(thing.region), thing.x))
    question = _ask(random, "describe", language)
    if language == "en":
        parts = [f"{_a(_name(thing, 'en'))} in the {thing.region}" for thing in things]
        text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        return question, f"{text[0].upper()}{text[1:]}.", "describe"
    return question, "，".join(f"{ZH[t.region]}有{_one(t)}" for t in things) + "。", "describe"


def _ask(random: Random, what: str, language: str, name: str = "") -> str:
    return random.choice(WORDINGS[what][language]).format(name)


def _word(name: str, language: str) -> str:
    return name if language == "en" else ZH[name]


def _name(thing: Thing, language: str) -> str:
    if thing.colour is None:
        return f"digit {thing.kind[-1]}" if language == "en" else f"数字{thing.kind[-1]}"
    return f"{thing.colour} {thing.kind}" if language == "en" else f"{ZH[thing.colour]}的{ZH[thing.kind]}"


def _a(name: str) -> str:
    return f"the {name}" if name.startswith("digit") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _one(thing: Thing) -> str:
    return _name(thing, "zh") if thing.colour is None else f"一个{_name(thing, 'zh')}"


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    """The shapes whose kind (or colour) no other shape of the scene has."""
    shapes = [thing for thing in scene.things if thing.colour]
    counts = Counter(getattr(thing, attribute) for thing in shapes)
    return [thing for thing in shapes if counts[getattr(thing, attribute)] == 1]


def _absent(scene: Scene, attribute: str, names: Iterable[str]) -> list[str]:
    here = {getattr(thing, attribute) for thing in scene.things}
    return [name for name in names if name not in here]


def _ask_colour(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    for thing in _unique(scene, "kind"):
        kind, colour = _word(thing.kind, language), _word(thing.colour, language)
        answer = f"The {kind} is {colour}." if language == "en" else f"{kind}是{colour}的。"
        turns = [(_ask(random, "colour of", language, kind), answer, "colour")]
        yield turns + ([_place_of_it(random, thing, language)] if random.random() < 0.5 else [])


def _ask_shape(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    for thing in _unique(scene, "colour"):
        turns = [
            (_ask(random, "shape of", language, _word(thing.colour, language)), _it_is_a(thing, language), "shape")
        ]
        yield turns + ([_place_of_it(random, thing, language)] if random.random() < 0.5 else [])


def _ask_only(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    """Where there is one shape and nothing else, it needs no name."""
    if len(scene.things) != 1 or not scene.things[0].colour:
        return
    (thing,) = scene.things
    kind, colour = _word(thing.kind, language), _word(thing.colour, language)
    yield [
        (_ask(random, "shape", language), _it_is_a(thing, language), "shape"),
        _colour_of_it(random, thing, language),
    ]
    answer = f"The {kind} is {colour}." if language == "en" else f"{kind}是{colour}的。"
    yield [(_ask(random, "colour", language), answer, "colour")]
    yield [(_ask(random, "place", language), _it_is_in(kind, thing, language), "position")]


def _ask_position(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    for thing in _unique(scene, "kind"):
        kind = _word(thing.kind, language)
        turns = [(_ask(random, "place of", language, kind), _it_is_in(kind, thing, language), "position")]
        yield turns + ([_colour_of_it(random, thing, language)] if random.random() < 0.5 else [])


def _it_is_a(thing: Thing, language: str) -> str:
    return f"It is {_a(thing.kind)}." if language == "en" else f"它是{ZH[thing.kind]}。"


def _it_is_in(name: str, thing: Thing, language: str) -> str:
    return f"The {name} is in the {thing.region}." if language == "en" else f"{name}在{ZH[thing.region]}。"


def _colour_of_it(random: Random, thing: Thing, language: str) -> Turn:
    answer = f"It is {thing.colour}." if language == "en" else f"它是{ZH[thing.colour]}的。"
    return _ask(random, "colour of it", language), answer, "colour"


def _place_of_it(random: Random, thing: Thing, language: str) -> Turn:
    answer = f"It is in the {thing.region}." if language == "en" else f"它在{ZH[thing.region]}。"
    return _ask(random, "place of it", language), answer, "position"


def _ask_count(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    shapes = [thing for thing in scene.things if thing.colour]
    kind = random.choice(SHAPES)
    yield [(_ask(random, "count", language), _there_are(len(shapes), None, language), "count")]
    count = sum(thing.kind == kind for thing in shapes)
    yield [(_ask(random, "count of", language, _word(kind, language)), _there_are(count, kind, language), "count")]


def _there_are(count: int, kind: str | None, language: str) -> str:
    if language == "en":
        verb, plural = ("is", "") if count == 1 else ("are", "s")
        return f"There {verb} {NUMBERS['en'][count]} {kind or 'shape'}{plural}."
    return (f"有{NUMBERS['zh'][count]}个" if count else "没有") + f"{ZH[kind] if kind else '形状'}。"


def _ask_digit(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    for thing in scene.things:
        if thing.colour is None:
            answer = f"It is the {_name(thing, 'en')}." if language == "en" else f"它是{_name(thing, 'zh')}。"
            word = "digit" if language == "en" else "数字"
            turns = [(_ask(random, "digit", language), answer, "digit")]
            yield turns + ([_place_of_it(random, thing, language)] if random.random() < 0.3 else [])
            yield [(_ask(random, "place of", language, word), _it_is_in(word, thing, language), "position")]


def _ask_yes_no(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    shapes = [thing for thing in scene.things if thing.colour]
    present = {(thing.colour, thing.kind) for thing in shapes}
    colour, kind = (
        random.choice(sorted(present))
        if shapes and random.random() < 0.5
        else (
            random.choice(COLOURS),
            random.choice(SHAPES),
        )
    )
    if shapes and random.random() < 0.4:  # near misses: the right shape in another colour
        kind = random.choice(shapes).kind
    yes = (colour, kind) in present
    if language == "en":
        name = _a(f"{colour} {kind}")
        answer = f"Yes, there is {name}." if yes else f"No, there is no {colour} {kind}."
    else:
        name = f"{ZH[colour]}的{ZH[kind]}"
        answer = f"有，有{name}。" if yes else f"没有{name}。"
    yield [(_ask(random, "is there", language, name), answer, "yes/no")]


def _ask_absent(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    """Things that are not in the picture: the honest answer."""
    kind, colour = (
        _word(random.choice(_absent(scene, attribute, names)), language)
        for attribute, names in (("kind", SHAPES), ("colour", COLOURS))
    )
    if random.random() < 0.3:
        kind = random.choice(STRANGERS[language])
    en = language == "en"
    no_kind = f"I can't tell: there is no {kind}." if en else f"我看不出来，图里没有{kind}。"
    no_colour = f"I can't tell: there is nothing {colour}." if en else f"我看不出来，图里没有{colour}的东西。"
    options = [("colour of", kind, no_kind), ("place of", kind, no_kind), ("shape of", colour, no_colour)]
    if all(thing.colour for thing in scene.things):
        options.append(("digit", "", "I can't tell: there is no digit." if en else "我看不出来，图里没有数字。"))
    what, name, answer = random.choice(options)
    yield [(_ask(random, what, language, name), answer, "can't tell")]


_MAKERS: tuple[Callable[..., Any], ...] = (_ask_colour, _ask_shape, _ask_only, _ask_position, _ask_count, _ask_digit)
_MAKERS += 2 * (_ask_yes_no, _ask_absent)  # the hardest: what is not there has to be looked for everywhere
