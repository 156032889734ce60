"""The many ways in which people ask for the same thing, in English and Chinese.

A wording is a text with choices in brackets: "[What|Which] colour is the {}?" stands for two questions, and `{}` for
the name that is asked about. Brackets can be nested. `expand` picks one question. In addition, `sentences.json` holds
whole sentences as people say them, and what they say before and after a question.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

_CHOICE = re.compile(r"\[([^\[\]]*)\]")

# Names that people use for a shape, and words for the picture and for anything in it.
OTHER_NAMES = {
    "en": {
        "circle": ("circle", "round shape", "disc", "dot", "round thing", "round one"),
        "square": ("square", "box", "square shape", "block"),
        "triangle": ("triangle", "triangular shape", "triangle shape"),
        "star": ("star", "star shape", "five-pointed star"),
    },
    "zh": {
        "circle": ("圆形", "圆", "圆圈", "圆点", "那个圆", "这个圆形"),
        "square": ("正方形", "方形", "方块", "那个方块", "这个正方形"),
        "triangle": ("三角形", "三角", "那个三角形", "这个三角形"),
        "star": ("五角星", "星星", "星形", "那颗星", "这个五角星"),
    },
}
OTHER_COLOURS = {
    "zh": {
        "red": ("红色", "红"),
        "green": ("绿色", "绿"),
        "blue": ("蓝色", "蓝"),
        "yellow": ("黄色", "黄"),
        "purple": ("紫色", "紫"),
        "orange": ("橙色", "橘色", "橙"),
    }
}

_PICTURE = "[picture|image|drawing|photo|pic|figure|sketch|graphic|illustration]"
_HERE = f"[| here| in [this|the] {_PICTURE}| in it| in there| that you see| on the {_PICTURE}]"
_ANY = "[shape|figure|object|thing|form|item|one|drawing|geometric shape|geometric figure]"
_THE_ONE = f"[the|this|that] [|only |single |one ]{_ANY}"
_COLOUR = "[colour|color]"
_TELL = (
    "[Can|Could|Would] you [please |][tell|say to|show] me|Tell me|Please tell me|I want to know|I'd like to know|"
    "Do you know|Do you see|Can you see|Can you say|Let me know|I wonder|Say|Could you name|Please say|"
    "I was wondering|Any idea|Help me see|Would you know"
)
_GIVE = (
    "Name|Tell me|Say|Please name|Give me|State|Identify|Please give|What is|What's|Can you name|Could you name|"
    "Do you know|I need|I'd like to know|Can you tell me|Could you tell me|Can you identify|Determine|Please state|"
    "Find|Write down|Specify|Just tell me|Kindly tell me"
)

_TU = "[图片|图|图像|画|照片|图画|画面]"
_ZAI_TU = f"[|这张{_TU}[里|中|上][|的]|{_TU}[里|中|上|里面][|的]|画里[|的]|这里[|的]|画中[|的]]"
_DONGXI = "[形状|图形|东西|图案|物体|图像|几何图形]"
_ZHEGE = f"[这个|这|那个|它这个|图中的|图里的|图片里的|画里的|图片中的|图上的|上面的|画上的|唯一的]{_DONGXI}"
_WHAT = "[什么|啥|哪种|何种|怎样的|什么样的]"
_ASK = (
    "请问|请告诉我|告诉我|我想知道|请说|说说|说一下|你知道|你看|帮我看看|麻烦看一下|看一下|你觉得|请看看|帮我看一下|"
    "麻烦告诉我|能不能告诉我|可以告诉我|能告诉我|请你说说|请回答|想问一下|我问你|你能看出|你看得出|能看出"
)

# Each question in up to three forms, which `FRAMES` puts into sentences: direct ("what colour is it"), indirect ("what
# colour it is") and a noun ("the colour of it").
FORMS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "colour of": {
        "en": {
            "direct": (
                f"[what|which] {_COLOUR} is the {{}}",
                f"[what|which] {_COLOUR} does the {{}} have",
                f"what {_COLOUR} [do you see for|did they use for|was used for|would you call] the {{}}",
                f"what is the {_COLOUR} of the {{}}",
                f"what's the {{}}'s {_COLOUR}",
                "how is the {} coloured",
                f"in [what|which] {_COLOUR} is the {{}} [drawn|painted|shown|filled]",
                "what [shade|hue|tint] is the {}",
            ),
            "indirect": (f"[what|which] {_COLOUR} the {{}} [is|has]", f"what the {_COLOUR} of the {{}} is"),
            "noun": (f"the {_COLOUR} of the {{}}", f"the {{}}'s {_COLOUR}", f"what {_COLOUR} the {{}} is"),
        },
        "zh": {
            "direct": (
                f"{{}}是{_WHAT}颜色[|的]",
                "{}什么颜色",
                "{}的颜色[是|为][什么|啥|哪种]",
                "{}是哪个颜色[|的]",
                "{}[涂|画|染]的是[什么|啥]颜色",
                "{}[涂|画]成了什么颜色",
                "{}的颜色",
                "{}呈什么颜色",
                "什么颜色的{}",
                "{}有什么颜色",
                "{}属于[什么|哪种]颜色",
            ),
            "noun": ("{}的颜色", "{}是什么颜色[|的]"),
        },
    },
    "colour of it": {
        "en": {
            "direct": (
                f"[what|which] {_COLOUR} is [it|that|this one]",
                f"[what|which] {_COLOUR} does it have",
                f"and [its|the] {_COLOUR}",
                f"what is its {_COLOUR}",
            ),
            "indirect": (f"[what|which] {_COLOUR} it is",),
            "noun": (f"its {_COLOUR}",),
        },
        "zh": {
            "direct": (
                f"它是{_WHAT}颜色[|的]",
                "它的颜色[呢|是什么|是啥]",
                "颜色呢",
                "那它是什么颜色[|的]",
                "是什么颜色[|的]",
                "那颜色呢",
            ),
            "noun": ("它的颜色",),
        },
    },
    "place of": {
        "en": {
            "direct": (
                "where is the {}",
                "where['s| do you see| can I find| does one find] the {}",
                "where in the picture is the {}",
                "in [what|which] [part|corner|place|region|area] [of the picture |]is the {}",
                "what is the position of the {}",
                "whereabouts is the {}",
            ),
            "indirect": ("where the {} is", "where [you see|to find] the {}"),
            "noun": ("the [position|place|location] of the {}", "where the {} is"),
        },
        "zh": {
            "direct": (
                "{}在[哪里|哪儿|哪|什么位置|什么地方|哪个位置|图的哪里|图片的哪个位置|哪个地方]",
                "{}的位置[|是什么|在哪里|在哪儿]",
                "哪里有{}",
                "{}位于[哪里|什么位置|何处]",
                "{}画在[哪里|哪儿|什么位置]",
            ),
            "noun": ("{}的位置", "{}在哪里"),
        },
    },
    "place of it": {
        "en": {
            "direct": (
                "where is [it|that|that one]",
                "and where is it",
                "where do you see it",
                "in which [part|corner|place] is it",
                "where exactly is it",
            ),
            "indirect": ("where it is",),
            "noun": ("its [position|place|location]",),
        },
        "zh": {
            "direct": (
                "它在[哪里|哪儿|哪|什么位置|什么地方|哪个位置]",
                "在[哪里|哪儿|什么位置]",
                "它的位置[呢|在哪里]",
                "那它在[哪里|哪儿]",
                "位置呢",
            ),
            "noun": ("它的位置",),
        },
    },
    "shape of": {
        "en": {
            "direct": (
                f"[what|which] shape is the {{}} {_ANY}",
                "[what|which] shape is {}",
                f"what is the {{}} {_ANY}",
                f"what shape does the {{}} {_ANY} have",
                f"what [kind|sort|type] of [shape|figure] is the {{}} {_ANY}",
                "what is {}[ here| in the picture|]",
                f"what is the shape of the {{}} {_ANY}",
                "what is drawn in {}",
                "what {} [shape|figure|thing] [is there|do you see|can you see|is in the picture]",
            ),
            "indirect": (
                f"[what|which] shape the {{}} {_ANY} [is|has]",
                f"what the {{}} {_ANY} is",
                "which shape is {}",
            ),
            "noun": (f"the shape of the {{}} {_ANY}", f"the {{}} {_ANY}", f"what the {{}} {_ANY} is"),
        },
        "zh": {
            "direct": (
                f"{{}}的{_DONGXI}是{_WHAT}[形状|图形|]",
                f"{{}}的是{_WHAT}[形状|图形|东西|]",
                f"{{}}的{_DONGXI}[叫什么|是啥|有什么形状|什么形状]",
                f"[哪个|什么|哪种]{_DONGXI}是{{}}的",
                f"{{}}[的|]{_DONGXI}的形状是[什么|啥]",
                "什么是{}的",
            ),
            "noun": (f"{{}}的{_DONGXI}[是什么|的形状|]", "{}的是什么形状"),
        },
    },
    "shape": {
        "en": {
            "direct": (
                f"[what|which] shape is [it|this|that|{_THE_ONE}]",
                f"[what|which] [shape|figure|form|geometric shape|geometric figure] [is|is shown|is drawn|is there|is "
                f"visible|can be seen|appears|is displayed]{_HERE}",
                f"[what|which] [shape|figure|form|geometric shape] [do|can] you [see|find|recognise|recognize|spot|"
                f"notice]{_HERE}",
                f"what [kind|sort|type] of [shape|figure|form|thing|object] is [it|this|that|{_THE_ONE}|shown|drawn]",
                f"what [shape|form] does [it|this|{_THE_ONE}] have",
                "what is [this|the] [shape|figure|form][ called|]",
                f"what['s| is] the shape{_HERE}",
                "what shape did [I|they|someone|we] draw",
                "how would you call [this|the] shape",
                "what do you call this [shape|figure]",
                "which shape am I looking at",
                "what geometric [form|figure|shape] is it",
                "what['s| is] the name of [this|the] shape",
                "is it a circle, a square, a triangle or a star",
            ),
            "indirect": (
                f"[what|which] shape [it|this|that|{_THE_ONE}] [is|has]",
                f"[what|which] [shape|figure] [is|you see|can be seen|is shown]{_HERE}",
                "what kind of shape [it|this] is",
            ),
            "noun": (
                f"the [shape|figure|form]{_HERE}",
                f"the shape of [it|this|{_THE_ONE}]",
                "this shape",
                "its shape",
                "the name of [this|the] shape",
                f"which shape is{_HERE}",
                "the geometric [figure|shape|form]",
            ),
        },
        "zh": {
            "direct": (
                f"{_ZAI_TU}[是|有]{_WHAT}[形状|图形|图案]",
                f"[这|它|这个|那]是{_WHAT}[形状|图形|图案]",
                f"{_ZHEGE}是[什么|啥|什么形状|哪种形状|什么样子|什么图形]",
                f"{_ZHEGE}[的形状是什么|叫什么|叫啥|是什么形状的|的名字是什么]",
                f"你[看到|看见|看得到][|了]{_WHAT}[形状|图形|图案]",
                "你[能|可以]看[到|出|见]什么[形状|图形]",
                f"{_ZAI_TU}画的是[什么形状|什么图形|啥图形]",
                f"{_ZAI_TU}[形状|图形]是[什么|啥|哪种|什么样的]",
                "是[什么|啥|哪种|什么样的]形状",
                "什么形状",
                "画[的是|了][|一个]什么[形状|图形]",
                f"{_ZAI_TU}[出现|显示|画]的[形状|图形]是什么",
                "是圆形、正方形、三角形还是五角星",
                f"{_ZAI_TU}是个什么[形状|图形]",
                f"{_ZAI_TU}[那个|这个][|图形|东西|形状]是[啥|什么][形状|图形][|来着]",
                "这是个[什么|啥][形状|图形]",
            ),
            "noun": (
                f"{_ZAI_TU}[形状|图形]",
                f"{_ZHEGE}的形状",
                "[这|它]是什么形状",
                "它的形状",
                f"{_ZAI_TU}的[图形|形状]名称",
                "这个图形的名字",
            ),
        },
    },
    "colour": {
        "en": {
            "direct": (
                f"[what|which] {_COLOUR} is [it|this|that|{_THE_ONE}]",
                f"[what|which] {_COLOUR} does {_THE_ONE} have",
                f"[what|which] {_COLOUR} has {_THE_ONE} got",
                f"what['s| is] the {_COLOUR}{_HERE}",
                f"what is the {_COLOUR} of [it|this|{_THE_ONE}]",
                f"[what|which] {_COLOUR} [do|can] you [see|find|recognise|recognize|spot]{_HERE}",
                f"what {_COLOUR} is [used|shown]{_HERE}",
                f"what {_COLOUR} is {_THE_ONE}{_HERE}",
                f"what['s| is] [its|the shape's|the object's|the figure's] {_COLOUR}",
                f"in [what|which] {_COLOUR} is {_THE_ONE} [drawn|painted|shown|filled|coloured in]",
                f"what [shade|hue|tint] is [it|{_THE_ONE}]",
                f"how is {_THE_ONE} coloured",
                f"what {_COLOUR} did [I|they|someone|we] [use|paint it|choose|draw it in]",
                f"which {_COLOUR} was used[ for it| for the shape| here|]",
                f"what {_COLOUR} would you say it is",
            ),
            "indirect": (
                f"[what|which] {_COLOUR} [it|this|that|{_THE_ONE}] [is|has]",
                f"[what|which] {_COLOUR} you see{_HERE}",
                f"what the {_COLOUR} [of the shape |of it |]is",
            ),
            "noun": (
                f"the {_COLOUR}{_HERE}",
                f"the {_COLOUR} of [it|this|{_THE_ONE}]",
                f"its {_COLOUR}",
                f"the [shape|object|figure]'s {_COLOUR}",
            ),
        },
        "zh": {
            "direct": (
                f"{_ZHEGE}是{_WHAT}颜色[|的]",
                f"[这|它|这个|那]是{_WHAT}颜色[|的]",
                f"{_ZHEGE}的颜色[是什么|是啥|是哪种|呢|]",
                f"{_ZAI_TU}是{_WHAT}颜色[|的]",
                f"{_ZAI_TU}[形状|图形|东西|图案]是{_WHAT}颜色[|的]",
                f"{_ZAI_TU}颜色是[什么|啥|哪种]",
                f"你[看到|看见][|了|的是]{_WHAT}颜色",
                "你能看[到|出]什么颜色",
                "是[什么|啥|哪种]颜色[|的]",
                "什么颜色",
                "[用|涂|画]的是[什么|啥]颜色",
                f"{_ZHEGE}[涂|画|染]的是[什么|啥]颜色",
                f"{_ZHEGE}[涂|画]成了什么颜色",
                f"{_ZAI_TU}有[什么|哪种|啥]颜色",
                f"{_ZHEGE}有什么颜色",
                f"{_ZHEGE}什么颜色",
                f"{_ZHEGE}呈[什么|何种]颜色",
                f"{_ZAI_TU}[那个|这个][|图形|东西|形状]是[啥|什么]颜色[|的|呀]",
                "用了什么颜色",
            ),
            "noun": (f"{_ZHEGE}的颜色", "它的颜色", f"{_ZAI_TU}[图形|形状|]的颜色", "颜色", "这是什么颜色"),
        },
    },
    "place": {
        "en": {
            "direct": (
                f"where is {_THE_ONE}",
                "where is [it|this]",
                f"where [do you see|can I find] {_THE_ONE}",
                f"in [what|which] [part|corner|region] [of the picture |]is {_THE_ONE}",
                f"what is the position of {_THE_ONE}",
            ),
            "indirect": (f"where {_THE_ONE} is", "where it is"),
            "noun": (f"the [position|place|location] of {_THE_ONE}", "its position"),
        },
        "zh": {
            "direct": (
                f"{_ZHEGE}在[哪里|哪儿|哪|什么位置|什么地方|哪个位置]",
                "它在[哪里|哪儿|什么位置]",
                f"{_ZHEGE}的位置[|在哪里]",
                "形状在哪里",
                f"{_ZHEGE}位于[哪里|什么位置]",
            ),
            "noun": (f"{_ZHEGE}的位置", "它在哪里"),
        },
    },
    "both": {
        "en": {
            "direct": (
                f"what [shape|figure] is it and what {_COLOUR}",
                f"what {_COLOUR} and [what |]shape is [it|this]",
                f"which shape and which {_COLOUR} [do you see|is it]",
                f"what is it, and what {_COLOUR} does it have",
            ),
            "noun": (f"the shape and [the |its |]{_COLOUR}", f"the {_COLOUR} and [the |its |]shape"),
        },
        "zh": {
            "direct": (
                "这是什么颜色的什么形状",
                f"{_ZHEGE}是什么颜色什么形状[|的]",
                f"{_ZAI_TU}是什么颜色的什么[图形|形状]",
                "形状和颜色[分别|各]是什么",
                f"{_ZAI_TU}有什么颜色的什么[形状|图形]",
            ),
            "noun": ("形状和颜色", "颜色和形状", f"{_ZHEGE}的颜色和形状"),
        },
    },
    "count": {
        "en": {
            "direct": (
                f"how many [shapes|figures|objects|geometric shapes|things] are there{_HERE}",
                f"how many [shapes|figures|objects] [do|can] you [see|count|find]{_HERE}",
                f"how many [shapes|figures|objects] are{_HERE}",
                "what is the number of shapes",
            ),
            "indirect": ("how many [shapes|figures] there are", "how many shapes you see"),
            "noun": ("the number of [shapes|figures]", "how many shapes there are"),
        },
        "zh": {
            "direct": (
                f"{_ZAI_TU}[|一共|总共]有[几个|多少个|多少][形状|图形|图案]",
                f"{_ZAI_TU}有[几|多少]个[形状|图形]",
                "你看到[|了][几个|多少个][形状|图形]",
                "[形状|图形]有[几个|多少个]",
                "数一数有几个[形状|图形]",
            ),
            "noun": ("[形状|图形]的[个数|数量]", "有几个[形状|图形]"),
        },
    },
    "count of": {
        "en": {
            "direct": (
                f"how many {{}}s are there{_HERE}",
                f"how many {{}}s [do|can] you [see|count|find]{_HERE}",
                "what is the number of {}s",
            ),
            "indirect": ("how many {}s there are",),
            "noun": ("the number of {}s",),
        },
        "zh": {
            "direct": (
                f"{_ZAI_TU}[|一共|总共]有[几个|多少个]{{}}",
                "你看到[|了]几个{}",
                "{}有[几个|多少个]",
            ),
            "noun": ("{}的[个数|数量]",),
        },
    },
    "digit": {
        "en": {
            "direct": (
                "[which|what] [digit|number|numeral] is [it|this|that]",
                f"[which|what] [digit|number|numeral] [is|is written|is shown]{_HERE}",
                f"[which|what] [digit|number|numeral] [do|can] you [see|read]{_HERE}",
                "what is the [digit|number]",
            ),
            "indirect": ("[which|what] [digit|number] [it|this] is",),
            "noun": (f"the [digit|number]{_HERE}", "[which|what] digit it is"),
        },
        "zh": {
            "direct": (
                "这是[什么|哪个]数字",
                f"{_ZAI_TU}是[哪个|什么]数字",
                "这是数字几",
                f"{_ZAI_TU}[写|画]的是[几|什么数字|哪个数字]",
                "数字是[几|多少|什么]",
                "你看到[|了]什么数字",
            ),
            "noun": ("[图里的|]数字", "这是数字几"),
        },
    },
    "is there": {
        "en": {
            "direct": (
                f"is there {{}}{_HERE}",
                f"[do|can] you see {{}}{_HERE}",
                f"does [this|the] {_PICTURE} [show|have|contain] {{}}",
                f"are you able to see {{}}{_HERE}",
            ),
            "indirect": (f"[if|whether] there is {{}}{_HERE}", "[if|whether] you see {}"),
        },
        "zh": {
            "direct": (
                f"{_ZAI_TU}有{{}}吗",
                f"{_ZAI_TU}有没有{{}}",
                "[你|]看[到|得到|见]{}[了|]吗",
                f"{_ZAI_TU}是不是有{{}}",
                "能看到{}吗",
            ),
        },
    },
    "is it": {
        "en": {
            "direct": (
                "is the {0} {1}",
                "is the {0} {1} or not",
                "would you say the {0} is {1}",
                "the {0} is {1}, right",
            ),
            "indirect": ("[if|whether] the {0} is {1}",),
        },
        "zh": {
            "direct": ("{0}是{1}的吗", "{0}是不是{1}的", "{0}是{1}的，对吗", "{0}的颜色是{1}吗", "{0}是{1}的对不对")
        },
    },
    "unknowable": {
        "en": {
            "direct": (
                "who [drew|made|painted] [this|it|the picture]",
                "when was [this|it|the picture] [drawn|made|painted|taken]",
                "how [old|heavy|expensive|warm|loud|soft] is [it|the {}]",
                "what does the {} [weigh|cost|smell like|taste like|sound like|think|mean]",
                "why is the {} [here|there]",
                "who owns the {}",
                "what is behind the {}",
                "what is the name of the [artist|painter]",
                "where was [this|it|the picture] [drawn|made|taken]",
                "what [time|day] is it",
                "how much does the {} cost",
            ),
        },
        "zh": {
            "direct": (
                "[这是|]谁画的",
                "这张[图|图片|画]是[什么时候|哪年|在哪里]画的",
                "{}[多重|多少钱|有多重|几岁了|热不热|重不重|贵不贵]",
                "{}是什么做的",
                "{}后面[是|有]什么",
                "{}是谁的",
                "为什么[有|画]{}",
                "画家叫什么名字",
                "现在几点[|了]",
                "{}有什么味道",
            ),
        },
    },
}
FORMS["anything"] = {
    "en": {
        "direct": (
            f"what [is|is shown|is drawn|is there|can be seen]{_HERE}",
            f"what [do|can] you see{_HERE}",
            f"what does [this|the] {_PICTURE} show",
            f"what is on [this|the] {_PICTURE}",
            "what [is|'s] [this|it|that]",
            "what am I looking at",
            f"what [shapes|things|figures|objects] [do|can] you see{_HERE}",
            f"which [shapes|figures|objects] are{_HERE}",
            f"what is [this|the] {_PICTURE} [about|of]",
        ),
        "indirect": (f"what [is|you see]{_HERE}", f"what [this|the] {_PICTURE} shows"),
        "noun": (f"what you see{_HERE}", f"what is{_HERE}"),
        "order": (
            f"Describe [this|the|my] {_PICTURE}[| please| for me| in one sentence].",
            f"Please describe [this|the|what is in the] {_PICTURE}.",
            f"[Give|Write] [|me ]a [|short ]description[ of [this|the] {_PICTURE}|].",
            f"Describe what you see{_HERE}.",
            f"Tell me about [this|the] {_PICTURE}.",
            f"Look at [this|the] {_PICTURE} and [describe it|tell me what you see].",
        ),
    },
    "zh": {
        "direct": (
            f"{_ZAI_TU}有[什么|啥|些什么|哪些东西|哪些图形]",
            "你看到[了|]什么",
            f"这张{_TU}[里|上|中]有[什么|啥]",
            f"{_ZAI_TU}[画|有]了[些|]什么",
            f"这张{_TU}[画的是什么|是什么|的内容是什么|讲的是什么]",
            "都有些什么",
            "[这|这个|它]是[什么|啥|什么东西]",
            "画的是[什么|啥]",
        ),
        "order": (
            f"[描述|说说|介绍|讲讲|形容][|一下]这[张|幅]{_TU}[|。|吧]",
            f"[请|请你|帮我]描述[|一下][这张|]{_TU}[|的内容|里的内容][|。]",
            f"[用一句话|简单|]描述[|一下]这张{_TU}[|。]",
            "说[说|一下]你看到[了什么|的东西][|。]",
            f"看看这张{_TU}，[有什么|告诉我你看到什么][|。]",
            f"给这张{_TU}写[一句|一段|个]描述[|。]",
        ),
    },
}

FRAMES = {
    "en": {
        "direct": (
            "{}?",
            "{}?",
            "{}?",
            "[So|OK|And|Hey|Well|Now|Hi|Hello|Alright|Hmm|Excuse me|Please|Look|Quick question|My question], {}?",
            "{}[ please|, please| exactly| again| do you think| would you say]?",
            "[Look at [this|the picture]|Here is a picture|I drew this|Have a look|See this one|Take a look|"
            "My son drew this|This is a drawing|Check this out][.|!|:] {}?",
        ),
        "indirect": (f"[{_TELL}] {{}}?", f"[{_TELL}] {{}}.", f"[{_TELL}] {{}}[ please| exactly|]?"),
        "noun": (f"[{_GIVE}] {{}}[.|?| please.|, please.]", "{}?", "{}", "What about {}?", "And {}?"),
        "order": ("{}",),
    },
    "zh": {
        "direct": (
            "{}？",
            "{}？",
            "{}？",
            "{}[呢|呀|啊|]？",
            f"[{_ASK}][|，]{{}}[吗|呢|]？",
            f"[{_ASK}][|，]{{}}[。|？]",
            "[看|你好，|嗯，|那|那么，|所以，|来，|麻烦问一下，|你好！|嘿，|哎，]{}？",
            "[这是我画的。|看这张图。|请看图。|看看这个。|我给你一张图。|这里有一张图片。|仔细看。]{}？",
        ),
        "noun": (
            f"[{_ASK}][|一下]{{}}[。|吧|？|]",
            "[说出|写出|指出|给出|识别|辨认|判断|回答|看看|识别一下|说一下]{}[。|吧|]",
            "{}？",
            "{}[是什么|呢]？",
            "那{}呢？",
        ),
        "order": ("{}",),
    },
}
FOLLOW_UPS = {
    "en": (
        "And the {}?",
        "What about the {}?",
        "And what about the {}?",
        "How about the {}?",
        "Now the {}.",
        "The {}?",
    ),
    "zh": ("那{}呢？", "{}呢？", "那么{}呢？", "还有{}呢？", "再看看{}呢？"),
}


def expand(random: Random, wording: str) -> str:
    """One question of a wording: each bracket is replaced by one of its choices, the innermost first."""
    while found := _CHOICE.search(wording):
        wording = wording[: found.start()] + random.choice(found[1].split("|")) + wording[found.end() :]
    return wording


PLAIN = 0.25  # how often a question is asked in the plainest way, as the notebooks do


WHOLE = 0.6  # how often a question is one of the whole sentences, if there are any
TALKATIVE = 0.2  # how often something is said before the question, and how often after it


@cache
def sentences(what: str, language: str) -> list[str]:
    """The whole sentences that ask for this, from `sentences.json`."""
    known = json.loads(Path(__file__).with_name("sentences.json").read_text(encoding="utf-8"))
    return known.get(what, {}).get(language, [])


def ask(random: Random, what: str, language: str, *names: str) -> str:
    """One way to ask for `what` (a key of `FORMS`), as people type: sometimes in lower case, or without punctuation."""
    forms = FORMS[what][language]
    if random.random() < PLAIN:
        core = expand(random, random.choice(forms["direct"][:2])).format(*names)
        return (core[:1].upper() + core[1:] + "?") if language == "en" else core + "？"
    if sentences(what, language) and random.random() < WHOLE:
        asked = random.choice(sentences(what, language)).format(*names)
        return with_words_around(
            random, asked if random.random() < 0.5 else as_typed(random, asked, language), language
        )
    kinds = [kind for kind in ("direct", "direct", "direct", "indirect", "noun", "order") if kind in forms]
    kind = random.choice(kinds)
    core = expand(random, random.choice(forms[kind])).format(*names)
    asked = as_typed(random, expand(random, random.choice(FRAMES[language][kind])).format(core), language)
    return with_words_around(random, asked, language)


def with_words_around(random: Random, asked: str, language: str) -> str:
    """The question, sometimes with something said before or after it."""
    gap = " " if language == "en" else ""
    if random.random() < TALKATIVE:
        asked = random.choice(sentences("before", language)) + gap + asked
    if random.random() < TALKATIVE:
        asked = asked + gap + random.choice(sentences("after", language))
    return asked


def as_typed(random: Random, text: str, language: str) -> str:
    """A sentence as people type it: with a capital and a final punctuation mark, but sometimes without either."""
    text = re.sub(r" +", " ", text).strip()
    if language == "en":
        text = text[:1].upper() + text[1:]
        if random.random() < 0.12:
            text = text.lower()
    if random.random() < 0.15:
        text = text.rstrip("?？.。")
    elif language == "zh" and random.random() < 0.1:
        text = text.replace("？", "?")
    elif random.random() < 0.03:
        text = text.replace("?", "??").replace("？", "？？")
    return text
