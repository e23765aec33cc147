"""Shortens chats that do not fit: which of their text is removed first."""

from collections.abc import Callable, Mapping, Sequence

Message = Mapping[str, str]


def shortened(messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]) -> list[Message]:
    """Returns the messages with as little text removed as necessary to fit, or the shortest ones if they cannot fit."""
    if fits(messages):
        return list(messages)
    head = [message for message in messages[:1] if message["role"] == "system"]
    turns: list[list[Message]] = []
    for message in messages[len(head) :]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)

    def newest(count: int) -> list[Message]:
        return [*head, *(message for turn in turns[len(turns) - count :] for message in turn)]

    left = newest(_most(lambda count: fits(newest(count)), min(len(turns), 1), len(turns)))
    # An empty answer is not worth training on, so it keeps at least one character.
    for role, least in (("user", 0), ("assistant", 1)):
        if fits(left):
            return left
        places = [place for place, message in enumerate(left) if message["role"] == role]
        if places:
            longest = max(places, key=lambda place: len(left[place]["content"]))
            left = shorten(left, longest, least, fits)
    return left


def shorten(
    messages: list[Message], place: int, least: int, fits: Callable[[Sequence[Message]], bool]
) -> list[Message]:
    """Returns the messages with one of them cut to the largest number of characters that fits, at least `least`."""
    role, content = messages[place]["role"], messages[place]["content"]

    def cut(characters: int) -> list[Message]:
        return [*messages[:place], {"role": role, "content": content[:characters]}, *messages[place + 1 :]]

    return cut(_most(lambda characters: fits(cut(characters)), least, len(content)))


def _most(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Returns the largest number from `low` to `high` that fits, by binary search, or `low` if none fits."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
