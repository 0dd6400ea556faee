"""What can stand in a scene: category name -> the emoji glyphs that depict it.

Several glyphs per category where the font has them, so that a category is more than one drawing.
Glyphs that would be confused with another category (a fried egg and a daisy) were left out.
"""

CATEGORIES: dict[str, str] = {
    # animals
    "dog": "🐕🐶🐩🦮",
    "cat": "🐈🐱😺",
    "horse": "🐎🐴",
    "cow": "🐄🐮🐂",
    "pig": "🐖🐷🐗",
    "rabbit": "🐇🐰",
    "bear": "🐻🐼🐨",
    "big cat": "🦁🐯🐅",
    "elephant": "🐘🦣",
    "monkey": "🐒🐵🦍",
    "chicken": "🐔🐓🐤",
    "penguin": "🐧",
    "owl": "🦉",
    "fish": "🐟🐠🐡",
    "octopus": "🐙🦑",
    "turtle": "🐢",
    "frog": "🐸",
    "butterfly": "🦋",
    "bee": "🐝",
    "ladybug": "🐞",
    "snail": "🐌",
    # things that move
    "car": "🚗🚙🚕🚓",
    "bus": "🚌🚍🚎",
    "truck": "🚚🚛🚒",
    "bicycle": "🚲🛵",
    "train": "🚂🚆🚄",
    "airplane": "🛩🛫🛬",
    "boat": "⛵🚤🚢",
    "rocket": "🚀",
    # food
    "apple": "🍎🍏",
    "banana": "🍌",
    "grapes": "🍇",
    "strawberry": "🍓",
    "watermelon": "🍉",
    "pizza": "🍕",
    "burger": "🍔",
    "ice cream": "🍦🍨🍧",
    "cake": "🎂🍰🧁",
    "doughnut": "🍩",
    "coffee": "☕🍵",
    # outdoors
    "tree": "🌳🌲🌴",
    "flower": "🌻🌷🌹🌸",
    "mushroom": "🍄",
    "cactus": "🌵",
    "house": "🏠🏡",
    "castle": "🏰🏯",
    # things
    "ball": "⚽🏀🏐",
    "guitar": "🎸🎻",
    "drum": "🥁",
    "book": "📕📗📘📚",
    "clock": "⏰🕰",
    "camera": "📷📹",
    "umbrella": "🌂☔",
    "hat": "🎩👒🧢",
    "shoe": "👟👠👞",
    "gift": "🎁",
    "balloon": "🎈",
    "key": "🔑🗝",
    "lamp": "💡🏮",
}

NAMES: tuple[str, ...] = tuple(CATEGORIES)
