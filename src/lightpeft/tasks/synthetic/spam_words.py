"""The phrases of the spam generators, for mails and for short messages.

A `_SEEN` wording is used in both splits, an `_UNSEEN` one in validation only. `{name}`, `{place}`, `{when}`,
`{sum}`, `{thing}` and `{firm}` are drawn anew wherever they stand, for ham and spam from the same lists.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bait:
    """What a spammer claims: told to the reader, and as an honest writer tells of it."""

    direct: str
    reported: str


@dataclass(frozen=True)
class Wording:
    """All phrases of one kind of message, in one split, without full stops; questions end in their mark."""

    baits: tuple[Bait, ...]
    demands: tuple[str, ...]
    """Imperatives, so that `you need not ...` turns them around."""

    news: tuple[str, ...]
    requests: tuple[str, ...]
    verdicts: tuple[str, ...]
    """What an honest writer makes of somebody else's bait."""

    small_talk: tuple[str, ...]
    """Says nothing about the class."""

    slots: dict[str, tuple[str, ...]]


def _baits(*pairs: tuple[str, str]) -> tuple[Bait, ...]:
    return tuple(Bait(direct, reported) for direct, reported in pairs)


def _slots(
    names: str, places: str, sums: str, things: str, firms: str, when: str
) -> dict[str, tuple[str, ...]]:
    lists = {"name": names, "place": places, "sum": sums, "thing": things, "firm": firms}
    return {key: tuple(words.split()) for key, words in lists.items()} | {"when": tuple(when.split(", "))}


MAIL_SEEN = Wording(
    baits=_baits(
        ("your account at {firm} has been locked", "my account at {firm} has been locked"),
        ("a refund of {sum} euros is waiting for you", "a refund of {sum} euros is waiting for me"),
        ("you were chosen for a loan of {sum} euros", "I was chosen for a loan of {sum} euros"),
        ("your mailbox is almost full", "my mailbox is almost full"),
        ("your invoice over {sum} euros is still open", "my invoice over {sum} euros is still open"),
        (
            "{firm} pays {sum} euros a day for work from home",
            "{firm} pays {sum} euros a day for work from home",
        ),
        (
            "you can earn {sum} euros with one small investment",
            "one can earn {sum} euros with one investment",
        ),
        ("a distant relative left you {sum} euros", "a distant relative left me {sum} euros"),
    ),
    demands=(
        "confirm your password on our page",
        "open the attached form and fill in your card number",
        "send a copy of your passport to {firm}",
        "follow the link and sign in",
        "pay a small fee to release the money",
        "reply with the number of your bank account",
        "download the attached {thing} and run it",
    ),
    news=(
        "your {thing} for {firm} is attached",
        "the bank in {place} opens your account {when}",
        "we pay your invoice of {sum} euros {when}",
        "{name} has sent your {thing} to {firm}",
        "I put the {thing} and the form into the folder",
        "{firm} has moved its office to {place}",
        "the loan for the new roof was granted, {sum} euros in all",
        "the link to your {thing} is on our page",
    ),
    requests=(
        "could you read my {thing} before the meeting {when}?",
        "please bring the {thing} to {place} {when}",
        "can {name} sign the form for {firm}?",
        "would you send me your {thing} again?",
        "please tell {name} that the money has arrived",
        "let me know {when} whether {sum} euros are enough",
    ),
    verdicts=(
        "of course I deleted it",
        "{name} says that it is a fraud",
        "do not answer such mails",
        "the bank knows nothing of it",
        "I have told {firm} about it",
    ),
    small_talk=(
        "it has rained in {place} all week",
        "I hope that you are well",
        "thank you for your last mail",
        "{name} sends kind regards",
        "the trains to {place} are late again",
        "we are closed {when}",
        "the office is quiet {when}",
        "I write to you from {place}",
    ),
    slots=_slots(
        "Anna Jonas Maria Tom Eva Paul Lena Max",
        "Bremen Leeds Turin Lyon Graz Porto",
        "90 250 500 1200 4000 7500",
        "report contract list plan table draft letter document",
        "Nordbank Postline Velmar Cargonet Brightloan",
        "today, tomorrow, on Monday, on Friday, this week, before noon",
    ),
)

MAIL_UNSEEN = Wording(
    baits=_baits(
        ("somebody tried to enter your profile at {firm}", "somebody tried to enter my profile at {firm}"),
        ("your tax repayment of {sum} euros was approved", "my tax repayment of {sum} euros was approved"),
        ("you inherit {sum} euros from a client abroad", "I inherit {sum} euros from a client abroad"),
        ("your storage at {firm} expires {when}", "my storage at {firm} expires {when}"),
    ),
    demands=(
        "verify your identity with the button below",
        "type your PIN into the questionnaire",
        "transfer {sum} euros to our notary",
        "enable the macros in the {thing}",
    ),
    news=(
        "the minutes and the {thing} are in the archive",
        "the notary in {place} has checked the {thing}",
        "{name} transferred {sum} euros to the club",
        "{firm} has approved our {thing}",
    ),
    requests=(
        "may I borrow your {thing} {when}?",
        "please type the minutes and show them to {name}",
        "can we verify your {thing} together {when}?",
    ),
    verdicts=("I marked it as junk", "this is a well-known swindle", "{name} almost believed it"),
    small_talk=(
        "the garden in {place} is in bloom",
        "{name} is on holiday {when}",
        "my telephone is out of order {when}",
        "the canteen serves soup {when}",
    ),
    slots=_slots(
        "Ruth Oskar Ines Viktor",
        "Bergen Basel Ghent",
        "65 830 15000",
        "spreadsheet statute brochure manuscript",
        "Safeharbor Quickpay Hellwig",
        "at the weekend, in the evening, next Thursday",
    ),
)

SMS_SEEN = Wording(
    baits=_baits(
        ("your parcel is stuck at the depot in {place}", "my parcel is stuck at the depot in {place}"),
        ("you have won a {thing} worth {sum} euros", "I have won a {thing} worth {sum} euros"),
        ("your phone is infected", "my phone is infected"),
        ("you have one missed call from {firm}", "I have one missed call from {firm}"),
        ("a single near {place} wants to meet you", "a single near {place} wants to meet me"),
        ("your free {thing} from {firm} is ready", "my free {thing} from {firm} is ready"),
        ("your card will be charged {sum} euros", "my card will be charged {sum} euros"),
    ),
    demands=(
        "tap the link to get it",
        "text YES to {sum}",
        "call the number below",
        "install our app now",
        "pay the customs of 2 euros online",
        "send your code back to us",
    ),
    news=(
        "your parcel is with {name}",
        "I have won at cards against {name}",
        "I missed the call, the phone was off",
        "got your {thing} at {firm} for free",
        "paid {sum} euros for your {thing}",
        "the app of {firm} works again",
    ),
    requests=(
        "can you fetch the parcel {when}?",
        "please call {name} {when}",
        "please text me the code of the door",
        "shall we meet in {place} {when}?",
        "tap on the window {when}, the bell is broken",
        "do you need your {thing} {when}?",
    ),
    verdicts=(
        "I did not tap it",
        "such nonsense",
        "{name} got the same",
        "just delete it",
        "it was a fraud",
    ),
    small_talk=(
        "am in {place}",
        "it is cold {when}",
        "sorry for the late reply",
        "the bus is late",
        "so busy {when}",
        "love from {place}",
    ),
    slots=_slots(
        "Mia Ben Nora Leo Ida Finn",
        "town Cork Malaga Kiel Delft",
        "20 75 100 300 999",
        "ticket voucher tablet watch ringtone coffee",
        "Shopsy Telvo Runbox Zappo",
        "tonight, today, tomorrow, at six, after lunch, on Sunday",
    ),
)

SMS_UNSEEN = Wording(
    baits=_baits(
        ("your delivery could not be handed over", "my delivery could not be handed over"),
        ("a gift basket of {firm} has your name on it", "a gift basket of {firm} has my name on it"),
        ("your SIM will be blocked {when}", "my SIM will be blocked {when}"),
    ),
    demands=("claim it at our site", "dial the hotline", "update your data in the form"),
    news=(
        "your delivery lies under the mat",
        "the hotline of {firm} was friendly",
        "{name} gave me a {thing}",
    ),
    requests=("will you dial in {when}?", "please take your {thing} along", "may {name} sleep here {when}?"),
    verdicts=("what a scam", "blocked the sender", "{name} laughed about it"),
    small_talk=("stuck in traffic", "the film starts {when}", "{name} says hello"),
    slots=_slots(
        "Kai Zoe Emil",
        "Bath Ostend Ulm",
        "15 450",
        "scooter headset bracelet",
        "Luxodeal Fonix",
        "at dawn, at midnight, in an hour",
    ),
)
