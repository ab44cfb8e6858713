from deepcluster.progress import counted, epoch_sentence, minutes


def test_an_epoch_in_words_that_can_be_known() -> None:
    line = {"epoch": 0, "loss": 2.1, "ln_k": 2.3026, "nmi_previous": 0.5, "effective_rank": 12.34}
    said = epoch_sentence({**line, "nmi": None})
    assert said == "epoch   1  loss 2.100  guessing is 2.30  NMI before 0.500  directions 12.3"


def test_one_is_no_plural() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class") for n in (1, 1200)] == ["1 class", "1,200 classes"]


def test_minutes_as_they_were_given() -> None:
    assert [minutes(x) for x in (1, 0.5, 20)] == ["1 minute", "0.5 minutes", "20 minutes"]
