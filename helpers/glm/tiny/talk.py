"""Questions about a scene and their answers, in English and Chinese, over several turns.

A conversation is a list of turns (question, answer, kind); `kind` says what a turn asks for, for the
scores. Answers come from the scene's data; questions about things that are not there get "can't tell".
"""

from collections import Counter

from helpers.glm.tiny.scenes import COLOURS, REGIONS, SHAPES

ZH = {
    **dict(zip(SHAPES, ("圆形", "正方形", "三角形", "五角星"), strict=True)),
    **dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "紫色", "橙色"), strict=True)),
    **dict(zip(REGIONS, ("左上角", "上方", "右上角", "左边", "中间", "右边", "左下角", "下方", "右下角"), strict=True)),
}
NUMBERS = {"en": ("no", "one", "two", "three", "four"), "zh": ("没有", "一", "两", "三", "四")}
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


def conversation(random, scene, language=None):
    """Turns about a scene: several questions in random order, some with one that refers back after it."""
    language = language or random.choice(("en", "zh"))
    groups = [group for make in _MAKERS for group in make(random, scene, language)]
    random.shuffle(groups)
    turns = [turn for group in groups[: random.randint(2, 5)] for turn in group]
    if random.random() < 0.4:
        turns.insert(0 if random.random() < 0.6 else len(turns), describe(random, scene, language))
    return turns


def small_talk(random):
    """Turns without a picture."""
    return [(question, answer, "talk") for question, answer in random.choice(SMALL_TALK[random.choice(("en", "zh"))])]


def describe(random, scene, language):
    """The turn that asks for all there is, in reading order."""
    things = sorted(scene.things, key=lambda thing: (REGIONS.index(thing.region), thing.x))
    if language == "en":
        question = random.choice(("Describe this picture.", "What is in this picture?", "Describe the picture"))
        parts = [f"{_a(_name(thing, 'en'))} in the {thing.region}" for thing in things]
        text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        return question, f"{text[0].upper()}{text[1:]}.", "describe"
    question = random.choice(("描述一下这张图片", "描述这张图片。", "这张图片里有什么？"))
    return question, "，".join(f"{ZH[t.region]}有{_one(t)}" for t in things) + "。", "describe"


def _name(thing, language):
    if thing.colour is None:
        return f"digit {thing.kind[-1]}" if language == "en" else f"数字{thing.kind[-1]}"
    return f"{thing.colour} {thing.kind}" if language == "en" else f"{ZH[thing.colour]}的{ZH[thing.kind]}"


def _a(name):
    return f"the {name}" if name.startswith("digit") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _one(thing):
    return _name(thing, "zh") if thing.colour is None else f"一个{_name(thing, 'zh')}"


def _unique(scene, attribute):
    """The shapes whose kind (or colour) no other shape of the scene has."""
    shapes = [thing for thing in scene.things if thing.colour]
    counts = Counter(getattr(thing, attribute) for thing in shapes)
    return [thing for thing in shapes if counts[getattr(thing, attribute)] == 1]


def _absent(scene, attribute, names):
    here = {getattr(thing, attribute) for thing in scene.things}
    return [name for name in names if name not in here]


def _ask_colour(random, scene, language):
    for thing in _unique(scene, "kind"):
        if language == "en":
            turns = [(f"What colour is the {thing.kind}?", f"The {thing.kind} is {thing.colour}.", "colour")]
            back = ("Where is it?", f"It is in the {thing.region}.", "position")
        else:
            kind, colour = ZH[thing.kind], ZH[thing.colour]
            turns = [(f"{kind}是什么颜色的？", f"{kind}是{colour}的。", "colour")]
            back = ("它在哪里？", f"它在{ZH[thing.region]}。", "position")
        yield turns + ([back] if random.random() < 0.5 else [])


def _ask_shape(random, scene, language):
    for thing in _unique(scene, "colour"):
        if language == "en":
            turns = [(f"What shape is the {thing.colour} thing?", f"It is a {thing.kind}.", "shape")]
            back = ("Where is it?", f"It is in the {thing.region}.", "position")
        else:
            turns = [(f"{ZH[thing.colour]}的东西是什么形状？", f"它是{ZH[thing.kind]}。", "shape")]
            back = ("它在哪里？", f"它在{ZH[thing.region]}。", "position")
        yield turns + ([back] if random.random() < 0.5 else [])
    shapes = [thing for thing in scene.things if thing.colour]
    if len(shapes) == 1 == len(scene.things):
        (thing,) = shapes
        if language == "en":
            yield [
                ("What shape is in the picture?", f"It is a {thing.kind}.", "shape"),
                ("What colour is it?", f"It is {thing.colour}.", "colour"),
            ]
        else:
            yield [
                ("图片里是什么形状？", f"它是{ZH[thing.kind]}。", "shape"),
                ("它是什么颜色的？", f"它是{ZH[thing.colour]}的。", "colour"),
            ]


def _ask_position(random, scene, language):
    for thing in _unique(scene, "kind"):
        if language == "en":
            turns = [(f"Where is the {thing.kind}?", f"The {thing.kind} is in the {thing.region}.", "position")]
            back = ("What colour is it?", f"It is {thing.colour}.", "colour")
        else:
            kind = ZH[thing.kind]
            turns = [(f"{kind}在哪里？", f"{kind}在{ZH[thing.region]}。", "position")]
            back = ("它是什么颜色的？", f"它是{ZH[thing.colour]}的。", "colour")
        yield turns + ([back] if random.random() < 0.5 else [])


def _ask_count(random, scene, language):
    shapes = [thing for thing in scene.things if thing.colour]
    count = len(shapes)
    if language == "en":
        verb, noun = ("is", "shape") if count == 1 else ("are", "shapes")
        yield [("How many shapes are there?", f"There {verb} {NUMBERS['en'][count]} {noun}.", "count")]
    elif count:
        yield [("图片里有几个形状？", f"有{NUMBERS['zh'][count]}个形状。", "count")]
    else:
        yield [("图片里有几个形状？", "没有形状。", "count")]
    kind = random.choice(SHAPES)
    count = sum(thing.kind == kind for thing in shapes)
    if language == "en":
        verb, noun = ("is", kind) if count == 1 else ("are", f"{kind}s")
        yield [(f"How many {kind}s are there?", f"There {verb} {NUMBERS['en'][count]} {noun}.", "count")]
    else:
        amount = f"有{NUMBERS['zh'][count]}个" if count else "没有"
        yield [(f"图片里有几个{ZH[kind]}？", f"{amount}{ZH[kind]}。", "count")]


def _ask_digit(random, scene, language):
    for thing in scene.things:
        if thing.colour is None:
            if language == "en":
                question = random.choice(("Which digit is it?", "Which digit is in the picture?"))
                yield [(question, f"It is the digit {thing.kind[-1]}.", "digit")]
                yield [("Where is the digit?", f"The digit is in the {thing.region}.", "position")]
            else:
                yield [
                    (random.choice(("这是什么数字？", "图片里是哪个数字？")), f"它是数字{thing.kind[-1]}。", "digit")
                ]
                yield [("数字在哪里？", f"数字在{ZH[thing.region]}。", "position")]


def _ask_yes_no(random, scene, language):
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
        yield [
            (f"Is there {name}?", f"Yes, there is {name}." if yes else f"No, there is no {colour} {kind}.", "yes/no")
        ]
    else:
        name = f"{ZH[colour]}的{ZH[kind]}"
        yield [(f"有{name}吗？", f"有，有{name}。" if yes else f"没有{name}。", "yes/no")]


def _ask_absent(random, scene, language):
    """Things that are not in the picture: the honest answer."""
    kinds, colours = _absent(scene, "kind", SHAPES), _absent(scene, "colour", COLOURS)
    kind, colour = random.choice(kinds), random.choice(colours)
    if language == "en":
        options = [
            (f"What colour is the {kind}?", f"I can't tell: there is no {kind}."),
            (f"Where is the {kind}?", f"I can't tell: there is no {kind}."),
            (f"What shape is the {colour} thing?", f"I can't tell: there is nothing {colour}."),
        ]
        if all(thing.colour for thing in scene.things):
            options.append(("Which digit is it?", "I can't tell: there is no digit."))
    else:
        options = [
            (f"{ZH[kind]}是什么颜色的？", f"我看不出来，图里没有{ZH[kind]}。"),
            (f"{ZH[kind]}在哪里？", f"我看不出来，图里没有{ZH[kind]}。"),
            (f"{ZH[colour]}的东西是什么形状？", f"我看不出来，图里没有{ZH[colour]}的东西。"),
        ]
        if all(thing.colour for thing in scene.things):
            options.append(("这是什么数字？", "我看不出来，图里没有数字。"))
    question, answer = random.choice(options)
    yield [(question, answer, "can't tell")]


_MAKERS = (_ask_colour, _ask_shape, _ask_position, _ask_count, _ask_digit, _ask_yes_no, _ask_absent)
