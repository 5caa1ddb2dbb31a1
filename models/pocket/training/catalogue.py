"""What pocket draws: the objects, chosen by hand, their styles, and the colours behind them.

An object's first name is the one its pictures are judged by; the others are wordings that
mean the same thing. The last word of the first name is the head noun.
"""

OBJECTS = """
😀 grinning face | happy face | smiling face
😂 laughing face | face with tears of joy
😍 heart eyes face | smiling face with heart-eyes
😎 sunglasses face | smiling face with sunglasses | cool face
😢 crying face | sad face
😡 angry face | enraged face
😴 sleeping face | sleepy face
🤢 sick face | nauseated face
🥶 cold face | freezing face
🤠 cowboy face | cowboy hat face
🥳 partying face | party face
🤖 robot | robot face
👻 ghost
👽 alien
🎃 jack-o-lantern | halloween pumpkin | pumpkin
💀 skull
🤡 clown | clown face
😈 devil | smiling devil | smiling face with horns
🐶 dog | dog face | puppy
🐱 cat | cat face | kitten
🐭 mouse | mouse face
🐰 rabbit | rabbit face | bunny
🦊 fox
🐻 bear
🐼 panda
🐨 koala
🐯 tiger | tiger face
🦁 lion
🐮 cow | cow face
🐷 pig | pig face
🐸 frog | frog face
🐵 monkey | monkey face
🐔 chicken | hen
🐧 penguin
🐤 chick | baby chick
🦉 owl
🦄 unicorn
🐝 bee | honeybee
🦋 butterfly
🐌 snail
🐞 ladybug | lady beetle | ladybird
🐢 turtle
🐍 snake
🐙 octopus
🦀 crab
🐠 tropical fish | fish
🐬 dolphin
🐳 whale | spouting whale
🐘 elephant
🦩 flamingo
🦆 duck
🐺 wolf
🌵 cactus
🌲 evergreen tree | fir tree | pine tree
🌴 palm tree
🍀 four leaf clover | clover
🍁 maple leaf
🍄 mushroom
🌹 rose | red rose
🌻 sunflower
🌷 tulip
🌞 sun | sun with face
🌙 crescent moon | moon
⭐ star
🌈 rainbow
⛄ snowman
🔥 fire | flame
💧 droplet | drop of water | water drop
☁️ cloud
⚡ lightning bolt | lightning | high voltage
🌍 globe | earth | planet earth
🍎 red apple | apple
🍏 green apple
🍌 banana
🍊 orange fruit | tangerine | mandarin
🍋 lemon
🍉 watermelon
🍇 grapes | bunch of grapes
🍓 strawberry
🍒 cherries | cherry
🍑 peach
🍍 pineapple
🍅 tomato
🥑 avocado
🥕 carrot
🌽 corn | ear of corn
🍆 eggplant | aubergine
🥦 broccoli
🍔 hamburger | burger
🍕 pizza | slice of pizza
🍟 french fries | fries
🌭 hot dog
🍩 doughnut | donut
🍪 cookie
🎂 birthday cake | cake
🧁 cupcake
🍦 ice cream | soft ice cream
☕ cup of coffee | hot beverage | coffee
🍺 beer mug | mug of beer | beer
🍞 bread | loaf of bread
🧀 cheese | cheese wedge
🚗 car | automobile | red car
🚌 bus
🚜 tractor
🚲 bicycle | bike
✈️ airplane | plane
🚀 rocket
🛸 flying saucer | ufo
⛵ sailboat | boat
🏠 house
🏰 castle
⛺ tent
⚽ soccer ball | football
🏀 basketball
🎈 balloon | red balloon
🎁 gift | wrapped gift | present
🎸 guitar
🥁 drum
🎨 artist palette | palette
🎲 game die | die | dice
🏆 trophy
🧸 teddy bear
📷 camera
💡 light bulb
📕 red book | closed book | book
🔑 key
🔔 bell
⏰ alarm clock | clock
💎 gem | gem stone | diamond
👑 crown
🎩 top hat
☂️ umbrella
❤️ red heart | heart
💙 blue heart
🔨 hammer
🧲 magnet
⚓ anchor
💣 bomb
💻 laptop | computer
"""

COLOURS = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (128, 128, 128),
    "red": (214, 48, 49),
    "orange": (245, 145, 40),
    "yellow": (252, 216, 70),
    "green": (70, 170, 80),
    "teal": (40, 165, 160),
    "blue": (52, 110, 220),
    "purple": (130, 75, 190),
    "pink": (246, 150, 190),
    "brown": (130, 85, 55),
}

# Other words for a colour.
COLOUR_WORDS = {
    "gray": ("grey",),
    "teal": ("turquoise",),
    "purple": ("violet",),
}

# The colour of a caption that names none.
DEFAULT_COLOUR = "white"

# The words for a style; the first is the one that evaluations and previews use.
STYLES = {
    "3d": ("3d style", "3d", "3d render"),
    "flat": ("flat style", "flat", "flat design"),
    "noto": ("noto style", "noto"),
}

# The style of a caption that names none.
DEFAULT_STYLE = "3d"
