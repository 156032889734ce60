"""Questions about a scene and their answers, in English and Chinese, over several turns.

A conversation is a list of turns (question, answer, kind); the scores use `kind`, which says what a turn asks about.
`wordings` has the many ways to ask, while each kind of question has answers of a single form. Answers come from the
scene's data. A question about something that is not there is answered with "can't tell" and the name of what was
asked about, so the model learns to copy a word it may never have seen.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from helpers.glm.tiny.scenes import COLOURS, REGIONS, SHAPES
from helpers.glm.tiny.wordings import FOLLOW_UPS, OTHER_COLOURS, OTHER_NAMES, as_typed, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from random import Random

    from helpers.glm.tiny.scenes import Scene, Thing

Turn = tuple[str, str, str]  # question, answer, what the question is about

ZH = {
    **dict(zip(SHAPES, ("圆形", "正方形", "三角形", "五角星"), strict=True)),
    **dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "紫色", "橙色"), strict=True)),
    **dict(zip(REGIONS, ("左上角", "上方", "右上角", "左边", "中间", "右边", "左下角", "下方", "右下角"), strict=True)),
}
NUMBERS = {"en": ("no", "one", "two", "three", "four"), "zh": ("没有", "一", "两", "三", "四")}
# Things that no scene contains, for questions about what is not there.
STRANGERS = {
    "en": (
        "dog cat car tree house bird hat person flower heart moon boat horse fish cow sheep pig duck "
        "chicken lion tiger bear elephant monkey mouse rabbit snake frog bee ant spider butterfly man "
        "woman child boy girl baby face hand foot eye nose mouth table chair bed lamp door window wall "
        "roof bridge road street train bus bicycle plane ship rocket truck ball doll kite book pen pencil "
        "phone computer clock watch key bag box cup bottle plate spoon fork knife apple banana pear grape "
        "lemon cherry tomato potato carrot onion bread cake cheese egg pizza candle gift balloon flag "
        "cloud sun rainbow mountain hill river lake sea beach island forest leaf grass rose snow fire "
        "stone diamond hexagon oval rectangle pentagon line arrow cross crown sword castle tent garden "
        "fence umbrella shirt shoe sock glove dress ring guitar piano drum robot ghost dragon unicorn "
        "dinosaur penguin owl"
    ).split(),
    "zh": (
        "狗 猫 汽车 树 房子 鸟 帽子 人 花 心形 月亮 船 马 鱼 牛 羊 猪 鸭子 鸡 狮子 老虎 熊 大象 猴子 老鼠 "
        "兔子 蛇 青蛙 蜜蜂 蚂蚁 蝴蝶 男人 女人 孩子 男孩 女孩 脸 手 脚 眼睛 鼻子 嘴 桌子 椅子 床 灯 门 "
        "窗户 墙 桥 路 火车 公共汽车 自行车 飞机 火箭 卡车 球 风筝 书 笔 铅笔 手机 电脑 钟 手表 钥匙 包 "
        "箱子 杯子 瓶子 盘子 勺子 刀 苹果 香蕉 梨 葡萄 柠檬 西瓜 番茄 土豆 胡萝卜 面包 蛋糕 鸡蛋 蜡烛 "
        "礼物 气球 旗子 云 太阳 彩虹 山 河 湖 海 沙滩 森林 叶子 草 玫瑰 雪 火 石头 钻石 六边形 椭圆 "
        "长方形 五边形 线 箭头 十字 王冠 城堡 花园 雨伞 衬衫 鞋 袜子 手套 裙子 戒指 吉他 钢琴 鼓 机器人 "
        "龙 恐龙 企鹅 猫头鹰 小狗 小猫 大树 小鸟 飞船 梯形 菱形 扇形"
    ).split(),
}
# Chinese characters that are tokens of their own: the first level of GB 2312, 3,755 characters in daily use.
CHARACTERS = "".join(
    bytes((row, cell)).decode("gb2312")
    for row in range(0xB0, 0xD8)
    for cell in range(0xA1, 0xFF)
    if (row, cell) < (0xD7, 0xFA)
)
_SYLLABLES = (
    "ba be bi bo ca co da de di do fa fi ga go ha hi jo ka ki la le li lo ma me mi mo na ni no pa pe po ra re ri ro sa "
    "se si so ta te ti to va vi wa we ya zo ing er el on ster bel cor dan fen gor lim mar pel rod san tor win"
).split()
NO_PICTURE = {"en": "I can't tell: there is no picture.", "zh": "我看不出来，没有图片。"}
NOT_SHOWN = {"en": "I can't tell: the picture doesn't show that.", "zh": "我看不出来，图里看不到这个。"}
_GREETING = {
    "en": "Hello! Show me a picture and ask me about it.",
    "zh": "你好！给我看一张图片，然后问我吧。",
}
# The model learns these turns by heart, because pictures cannot teach them; the model card says so.
SMALL_TALK = {
    "en": [
        [("Hello!", _GREETING["en"])],
        [("Hi", _GREETING["en"])],
        [("Hello there", _GREETING["en"])],
        [("Good morning!", _GREETING["en"])],
        [("Who are you?", "I am a tiny GLM-4V, made for this course.")],
        [("What are you?", "I am a tiny GLM-4V, made for this course.")],
        [("What can you do?", "I can see shapes, colours, places and digits in small pictures.")],
        [("What can you see?", "I can see shapes, colours, places and digits in small pictures.")],
        [("Thank you!", "You are welcome!")],
        [("Thanks", "You are welcome!")],
        [("What is the capital of France?", "The capital of France is Paris.")],
    ],
    "zh": [
        [
            ("你好", _GREETING["zh"]),
            ("浙江的省会在哪里", "浙江的省会是杭州。"),
            ("它有什么好玩的景点", "杭州有西湖、灵隐寺和西溪湿地。"),
        ],
        [("你好", _GREETING["zh"])],
        [("你好！", _GREETING["zh"])],
        [("早上好", _GREETING["zh"])],
        [("浙江的省会在哪里", "浙江的省会是杭州。")],
        [("浙江的省会在哪里", "浙江的省会是杭州。"), ("它有什么好玩的景点", "杭州有西湖、灵隐寺和西溪湿地。")],
        [("你是谁？", "我是一个很小的 GLM-4V，为这门课程而做。")],
        [("你能做什么？", "我能看出小图片里的形状、颜色、位置和数字。")],
        [("谢谢！", "不客气！")],
        [("谢谢你", "不客气！")],
        [("介绍一下大语言模型", "大语言模型读很多文字，学会预测下一个词。")],
    ],
}


def conversation(random: Random, scene: Scene, language: str | None = None) -> list[Turn]:
    """Turns about a scene: several questions in random order, some followed by one that refers back to them."""
    language = language or random.choice(("en", "zh"))
    groups = [group for make in _MAKERS for group in make(random, scene, language)]
    random.shuffle(groups)
    turns = [turn for group in groups[: random.randint(2, 5)] for turn in group]
    if random.random() < 0.4:
        turns.insert(0 if random.random() < 0.6 else len(turns), describe(random, scene, language))
    return turns


def small_talk(random: Random) -> list[Turn]:
    """Turns without a picture; sometimes a question that would need one."""
    language = random.choice(("en", "zh"))
    if random.random() < 0.3:
        question = random.choice(("colour of", "place of", "anything", "count", "digit", "shape", "colour"))
        asked = ask(random, question, language, _word(random.choice(SHAPES), language))
        return [(asked, NO_PICTURE[language], "talk")]
    turns = random.choice(SMALL_TALK[language])
    if random.random() < 0.5:
        turns = [(as_typed(random, question, language), answer) for question, answer in turns]
    return [(question, answer, "talk") for question, answer in turns]


def describe(random: Random, scene: Scene, language: str) -> Turn:
    """The turn that asks for everything in the picture; the answer lists it in reading order.

    >>> from random import Random
    >>> from helpers.glm.tiny.scenes import random_scene
    >>> len(describe(Random(0), random_scene(Random(3), count=2, with_digit=False), "en"))
    3
    """
    things = sorted(scene.things, key=lambda thing: (REGIONS.index(thing.region), thing.x))
    question = ask(random, "anything", language)
    if language == "en":
        return question, _sentence(_listed([f"{_a(_name(t, 'en'))} in the {t.region}" for t in things])), "describe"
    return question, "，".join(f"{ZH[t.region]}有{_one(t)}" for t in things) + "。", "describe"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _word(name: str, language: str) -> str:
    return name if language == "en" else ZH[name]


def _called(random: Random, kind: str, language: str) -> str:
    """A name that people use for a shape: mostly its own, sometimes another one."""
    return _word(kind, language) if random.random() < 0.6 else random.choice(OTHER_NAMES[language][kind])


def _tint(random: Random, colour: str, language: str) -> str:
    return colour if language == "en" else random.choice((ZH[colour], *OTHER_COLOURS["zh"][colour]))


def _name(thing: Thing, language: str) -> str:
    if thing.colour is None:
        return f"digit {thing.kind[-1]}" if language == "en" else f"数字{thing.kind[-1]}"
    return f"{thing.colour} {thing.kind}" if language == "en" else f"{ZH[thing.colour]}的{ZH[thing.kind]}"


def _a(name: str) -> str:
    return f"the {name}" if name.startswith("digit") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _one(thing: Thing) -> str:
    return _name(thing, "zh") if thing.colour is None else f"一个{_name(thing, 'zh')}"


def _shapes(scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if thing.colour]


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    """The shapes whose `attribute` ("kind" or "colour") no other shape of the scene shares."""
    shapes = _shapes(scene)
    counts = Counter(getattr(thing, attribute) for thing in shapes)
    return [thing for thing in shapes if counts[getattr(thing, attribute)] == 1]


def _absent(scene: Scene, attribute: str, names: Iterable[str]) -> list[str]:
    here = {getattr(thing, attribute) for thing in scene.things}
    return [name for name in names if name not in here]


def stranger(random: Random, language: str) -> str:
    """The name of something that no scene contains: a thing, or sometimes an invented word."""
    if random.random() < 0.6:
        return random.choice(STRANGERS[language])
    if language == "zh":
        return "".join(random.choice(CHARACTERS) for _ in range(random.choice((1, 2, 2, 3))))
    return "".join(random.choice(_SYLLABLES) for _ in range(random.choice((1, 2, 2, 3))))


def _follow_up(
    random: Random, things: list[Thing], thing: Thing, language: str, answer: Callable[[Thing, str], str], kind: str
) -> list[Turn]:
    """A turn such as "And the square?" about another of the things, or none."""
    others = [other for other in things if other is not thing]
    if not others or random.random() < 0.6:
        return []
    other = random.choice(others)
    asked = random.choice(FOLLOW_UPS[language]).format(_called(random, other.kind, language))
    return [(as_typed(random, asked, language), answer(other, language), kind)]


def _ask_colour(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    things = _unique(scene, "kind")
    for thing in things:
        turns = [
            (ask(random, "colour of", language, _called(random, thing.kind, language)), _is(thing, language), "colour")
        ]
        turns += _follow_up(random, things, thing, language, _is, "colour")
        yield turns + ([_place_of_it(random, thing, language)] if len(turns) == 1 and random.random() < 0.5 else [])


def _is(thing: Thing, language: str) -> str:
    return f"The {thing.kind} is {thing.colour}." if language == "en" else f"{ZH[thing.kind]}是{ZH[thing.colour]}的。"


def _ask_shape(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    for thing in _unique(scene, "colour"):
        asked = ask(random, "shape of", language, _tint(random, thing.colour, language))
        turns = [(asked, _it_is_a(thing, language), "shape")]
        yield turns + ([_place_of_it(random, thing, language)] if random.random() < 0.5 else [])


def _ask_only(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    """Questions about a scene with a single shape, which needs no name."""
    if len(shapes := _shapes(scene)) != 1:
        return
    (thing,) = shapes
    kind = _word(thing.kind, language)
    yield [
        (ask(random, "shape", language), _it_is_a(thing, language), "shape"),
        _colour_of_it(random, thing, language),
    ]
    yield [(ask(random, "colour", language), _is(thing, language), "colour")] + (
        [(ask(random, "shape", language), _it_is_a(thing, language), "shape")] if random.random() < 0.4 else []
    )
    answer = f"It is {_a(_name(thing, 'en'))}." if language == "en" else f"它是{_name(thing, 'zh')}。"
    yield [(ask(random, "both", language), answer, "shape")]
    if len(scene.things) == 1:
        yield [(ask(random, "place", language), _it_is_in(kind, thing, language), "position")]


def _ask_several(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    """Questions about a scene with several shapes, all of different kinds. Without a name, they are about all."""
    things = sorted(_unique(scene, "kind"), key=lambda thing: (REGIONS.index(thing.region), thing.x))
    if len(things) < 2 or len(things) < len(_shapes(scene)):
        return
    if language == "en":
        colours = _sentence(_listed([f"the {thing.kind} is {thing.colour}" for thing in things]))
        shapes = f"There is {_listed([_a(thing.kind) for thing in things])}."
    else:
        colours = "，".join(f"{ZH[thing.kind]}是{ZH[thing.colour]}的" for thing in things) + "。"
        shapes = f"有{'和'.join(ZH[thing.kind] for thing in things)}。"
    yield [(ask(random, "colour", language), colours, "colour")]
    yield [(ask(random, "shape", language), shapes, "shape")]


def _ask_position(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    things = _unique(scene, "kind")
    for thing in things:
        asked = ask(random, "place of", language, _called(random, thing.kind, language))
        turns = [(asked, _stands(thing, language), "position")]
        turns += _follow_up(random, things, thing, language, _stands, "position")
        yield turns + ([_colour_of_it(random, thing, language)] if len(turns) == 1 and random.random() < 0.5 else [])


def _stands(thing: Thing, language: str) -> str:
    return _it_is_in(_word(thing.kind, language), thing, language)


def _it_is_a(thing: Thing, language: str) -> str:
    return f"It is {_a(thing.kind)}." if language == "en" else f"它是{ZH[thing.kind]}。"


def _it_is_in(name: str, thing: Thing, language: str) -> str:
    return f"The {name} is in the {thing.region}." if language == "en" else f"{name}在{ZH[thing.region]}。"


def _colour_of_it(random: Random, thing: Thing, language: str) -> Turn:
    answer = f"It is {thing.colour}." if language == "en" else f"它是{ZH[thing.colour]}的。"
    return ask(random, "colour of it", language), answer, "colour"


def _place_of_it(random: Random, thing: Thing, language: str) -> Turn:
    answer = f"It is in the {thing.region}." if language == "en" else f"它在{ZH[thing.region]}。"
    return ask(random, "place of it", language), answer, "position"


def _ask_count(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    shapes = _shapes(scene)
    kind = random.choice(SHAPES)
    yield [(ask(random, "count", language), _there_are(len(shapes), None, language), "count")]
    count = sum(thing.kind == kind for thing in shapes)
    yield [(ask(random, "count of", language, _word(kind, language)), _there_are(count, kind, language), "count")]


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
            turns = [(ask(random, "digit", language), answer, "digit")]
            yield turns + ([_place_of_it(random, thing, language)] if random.random() < 0.3 else [])
            yield [(ask(random, "place of", language, word), _it_is_in(word, thing, language), "position")]


def _ask_yes_no(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    shapes = _shapes(scene)
    present = {(thing.colour, thing.kind) for thing in shapes}
    if random.random() < 0.25:
        name = stranger(random, language)
        answer = f"No, there is no {name}." if language == "en" else f"没有{name}。"
        yield [(ask(random, "is there", language, _a(name) if language == "en" else name), answer, "yes/no")]
        return
    colour, kind = (
        random.choice(sorted(present))
        if shapes and random.random() < 0.5
        else (random.choice(COLOURS), random.choice(SHAPES))
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
    yield [(ask(random, "is there", language, name), answer, "yes/no")]


def _ask_check(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    """Questions whether a thing has a certain colour."""
    for thing in _unique(scene, "kind")[:1]:
        supposed = thing.colour if random.random() < 0.5 else random.choice(COLOURS)
        names = (_called(random, thing.kind, language), _word(supposed, language))
        if language == "en":
            answer = f"{'Yes' if supposed == thing.colour else 'No'}, {_is(thing, 'en').replace('The', 'the')}"
        else:
            answer = f"{'是的' if supposed == thing.colour else '不是'}，{_is(thing, 'zh')}"
        yield [(ask(random, "is it", language, *names), answer, "yes/no")]


def _ask_absent(random: Random, scene: Scene, language: str) -> Iterator[list[Turn]]:
    """Questions about things that are not in the picture, or that no picture shows, with the honest answer."""
    if random.random() < 0.25:
        thing = random.choice(scene.things)
        name = "digit" if thing.colour is None else thing.kind
        name = name if language == "en" else "数字" if thing.colour is None else ZH[name]
        yield [(ask(random, "unknowable", language, name), NOT_SHOWN[language], "can't tell")]
        return
    kind, colour = (
        _word(random.choice(_absent(scene, attribute, names)), language)
        for attribute, names in (("kind", SHAPES), ("colour", COLOURS))
    )
    if random.random() < 0.5:
        kind = stranger(random, language)
    en = language == "en"
    no_kind = f"I can't tell: there is no {kind}." if en else f"我看不出来，图里没有{kind}。"
    no_colour = f"I can't tell: there is nothing {colour}." if en else f"我看不出来，图里没有{colour}的东西。"
    options = [("colour of", kind, no_kind), ("place of", kind, no_kind), ("shape of", colour, no_colour)]
    if all(thing.colour for thing in scene.things):
        options.append(("digit", "", "I can't tell: there is no digit." if en else "我看不出来，图里没有数字。"))
    if not _shapes(scene):
        no_shape = "I can't tell: there is no shape." if en else "我看不出来，图里没有形状。"
        options += [("shape", "", no_shape), ("colour", "", no_shape)]
    what, name, answer = random.choice(options)
    yield [(ask(random, what, language, name), answer, "can't tell")]


_MAKERS: tuple[Callable[[Random, Scene, str], Iterator[list[Turn]]], ...] = (
    _ask_colour,
    _ask_shape,
    _ask_only,
    _ask_several,
    _ask_position,
    _ask_count,
    _ask_digit,
    _ask_check,
    *2 * (_ask_yes_no, _ask_absent),  # the hardest: only a look at the whole picture shows that something is not there
)
