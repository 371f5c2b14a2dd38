"""Numbers in closed form, tables, and a complete, escaped page."""

import ast
import copy
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

import keras_metamix.report as report
from keras_metamix.report import numbers


def made(metrics):
    return report.Results.from_json(json.dumps(metrics))


class _Reader(HTMLParser):
    """Collects the texts of a page and fails on tags that do not nest."""

    VOID = frozenset({"meta", "img", "br", "link", "hr"})

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.ids, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def _read(page):
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.count(None), numbers.MISSING),
        (numbers.count(0), "0"),
        (numbers.count(999), "999"),
        (numbers.count(1000), "1.00 k"),
        (numbers.count(12_345_678), "12.3 M"),
        (numbers.count(999_499), "999 k"),
        (numbers.count(999_999), "1.00 M"),
        (numbers.count(5.3e9), "5.30 G"),
        (numbers.count(9_996), "10.0 k"),
        (numbers.size(512), "512 B"),
        (numbers.size(48_200), "48.2 kB"),
        (numbers.size(3_456_789), "3.46 MB"),
        (numbers.duration(812.4), "812 µs"),
        (numbers.duration(12.34), "12.3 µs"),
        (numbers.duration(1234), "1.23 ms"),
        (numbers.percent(0.91), "91.00 %"),
        (numbers.bits(8.0), "8"),
        (numbers.bits(3.4167), "3.42"),
        (numbers.ratio(0.983), "0.98x"),
        (numbers.wall_time(59.2), "59 s"),
        (numbers.wall_time(300), "5 min 0 s"),
        (numbers.wall_time(7260), "2 h 1 min"),
        (numbers.shorten("abcdefghij", 7), "abc…hij"),
        (numbers.shorten("abcdefg", 7), "abcdefg"),
    ],
)
def test_numbers(written, expected):
    assert written == expected


def test_markdown_of_the_results(metrics):
    lines = report.results_markdown(made(metrics)).splitlines()
    assert lines[0] == (
        "| model | test accuracy | BOPs | bits A/W | file size | latency, 1 thread | parity |"
    )
    assert lines[4] == (
        "| MetaMix | 91.02 % | 189 M (0.99x target) | 4.62/4.17 | 69.1 kB "
        "| 216 µs (207 to 240 µs) | 0 of 20,000 differ |"
    )
    assert len(lines) == 5


def test_missing_values_and_unequal_threads(metrics):
    metrics["rows"][0]["bops"] = None
    metrics["rows"][2]["threads"] = 2
    lines = report.results_markdown(made(metrics)).splitlines()
    assert "| latency |" in lines[0]
    assert "| – | 32/32 |" in lines[2]
    assert lines[2].endswith(", 1 thread | – |")
    assert ", 2 threads |" in lines[4]


def test_parity_names_differences_and_incomplete_delegation(metrics):
    metrics["rows"][2]["parity"] |= {
        "differing": 10, "max_lsb": 1, "top1_agreement": 0.9995, "delegated": False
    }  # fmt: skip
    line = report.results_markdown(made(metrics)).splitlines()[4]
    assert line.endswith(
        "| 10 of 20,000 differ, at most 1 LSB, top-1 agrees for 99.95 %, not fully delegated |"
    )


def test_terminal_shows_the_cells_of_markdown_and_no_markup(metrics):
    metrics["rows"][1]["name"] = "[red]A4W4"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.results_table(made(metrics)))
    text = console.export_text()
    assert "[red]A4W4" in text
    for line in report.results_markdown(made(metrics)).splitlines()[2:]:
        for cell in line.replace("\\", "").strip("| ").split(" | "):
            assert cell in text


def test_layers_markdown(metrics):
    lines = report.layers_markdown(made(metrics)).splitlines()
    assert len(lines) == 2 + len(metrics["layers"])
    assert lines[11] == (
        "| block_3_project | Conv2D | 903 k | 10.8 M | 3 (argmax 4) | 4 | 18.4 k | INT4 | search |"
    )
    metrics["layers"] = []
    assert report.layers_markdown(made(metrics)) == "No layers were recorded.\n"


def test_markdown_escapes_names(metrics):
    metrics["layers"][0]["name"] = "a|b<script>\n`c`"
    assert "| a\\|b&lt;script&gt; \\`c\\` |" in report.layers_markdown(made(metrics))


def test_page_is_well_formed_and_complete(metrics):
    page = report.render_page(made(metrics))
    reader = _read(page)
    for entry in metrics["layers"] + metrics["rows"]:
        assert entry["name"] in reader.texts
    assert reader.tags.count("svg") == 5
    assert len(reader.ids) == len(set(reader.ids))
    assert "train.batch_size" in reader.texts and "64" in reader.texts
    assert metrics["notes"][0] in reader.texts and metrics["run"]["command"] in reader.texts
    assert page.count("http") == page.count("http://www.w3.org/")  # namespaces only
    assert len(page) < 1_500_000


def test_an_analysis_has_sections_of_its_own(analysed_metrics):
    page = report.render_page(made(analysed_metrics))
    texts = _read(page).texts
    assert "Activation instability" in texts and "Hessian" in texts
    assert any("with the trace: 0.00, with the trace by operation" in text for text in texts)
    analysed_metrics["analysis"] |= {"instability": None, "traces": {}, "note": "No t<races>."}
    texts = _read(report.render_page(made(analysed_metrics))).texts
    assert "No t<races>." in texts and "Activation instability" in texts


def test_facts_compare_with_float_and_call_a_loss_a_loss(metrics):
    metrics["epochs"], metrics["search"]["budgets"] = [], []
    metrics["rows"][2] |= {"latency_us": 824.0, "bops": None}
    texts = _read(report.render_page(made(metrics))).texts
    assert "test accuracy, -0.69 points against float" in texts
    assert "file size, 4.79x smaller than float" in texts
    assert "median latency, 2.00x slower than float" in texts


def test_a_latency_is_the_budget(latency_metrics):
    texts = _read(report.render_page(made(latency_metrics))).texts
    assert any("budget 220 µs of predicted latency (t<able>.json)" in text for text in texts)
    latency = "median latency, 1.91x faster than float; 211 µs predicted, 0.96x the budget"
    assert latency in texts and "BOPs" in texts
    assert "target" not in report.results_markdown(made(latency_metrics))


def test_a_mixer_has_a_page_of_its_own(mixer_metrics):
    page = report.render_page(made(mixer_metrics))
    texts = _read(page).texts
    for text in (
        "test accuracy at 'full', -0.69 points against float",
        "test accuracy at 'eco', -1.52 points against 'full'",
        "BOPs at 'eco', 2.70x fewer",
        "one file with 2 operating points, 4.72x smaller than float; 132 kB as files of their own",
    ):
        assert text in texts
    assert page.count("<code>model.tflite</code>") == 1
    assert any(text.endswith("at operating point 'eco'.") for text in texts)
    assert "Search" not in texts and "Training" in texts and "MetaMix" not in texts
    assert page.count('<tr class="ours">') == 2


def test_a_segmentation_shows_its_own_scores(mask_metrics):
    results = made(mask_metrics)
    header, _, *rows = report.results_markdown(results).splitlines()
    assert header.startswith("| model | test mean IoU | test pixel accuracy | BOPs |")
    assert rows[2].startswith("| MetaMix | 62.00 % | 91.02 % | 189 M")
    page = report.render_page(results)
    texts = _read(page).texts
    assert "test mean IoU, +0.00 points against float" in texts
    caption = (
        "Test images, the true classes of their pixels, and the classes that the file of MetaMix"
    )
    assert any(text.startswith(caption) for text in texts)
    assert any(text.startswith("Mean IoU and cost after each epoch") for text in texts)
    assert "accuracy" not in page.replace("pixel accuracy", "")


def test_same_metrics_give_the_same_page(metrics):
    assert report.render_page(made(metrics)) == report.render_page(made(copy.deepcopy(metrics)))


def test_hostile_names_are_text(metrics):
    hostile = "<script>alert('$x$_{')</script>-->"
    metrics["layers"][3]["name"] = metrics["rows"][1]["name"] = metrics["title"] = hostile
    metrics["run"]["config"][hostile] = {hostile: hostile}
    for part in metrics["search"]["alphas"]["history"], metrics["search"]["alphas"]["candidates"]:
        part[hostile] = part.pop("block_1_project")
    page = report.render_page(made(metrics))
    assert "<script" not in page
    assert hostile in _read(page).texts


def test_empty_sections_say_so(metrics):
    metrics |= {"rows": [], "layers": [], "epochs": [], "search": None}
    reader = _read(report.render_page(made(metrics)))
    assert "svg" not in reader.tags
    assert "No epochs were recorded." in reader.texts
    assert "No search was recorded: the bits were given." in reader.texts
    assert "No layers were recorded." in reader.texts


@pytest.mark.slow
@pytest.mark.long
def test_a_deep_network_stays_small(metrics):
    metrics["layers"] = [
        layer | {"name": f"{layer['name']}_{copy_number}"}
        for copy_number in range(10)
        for layer in metrics["layers"]
    ]
    for part in metrics["search"]["alphas"]["history"], metrics["search"]["alphas"]["candidates"]:
        for name in list(part):
            part |= {f"{name}_{copy_number}": part[name] for copy_number in range(4)}
    page = report.render_page(made(metrics))
    assert "data:image/png;base64," in page
    assert len(page) < 1_500_000


def test_report_imports_no_framework():
    for file in Path(report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            module = getattr(node, "module", None) or ""
            for name in [*names, module] if isinstance(node, ast.Import | ast.ImportFrom) else []:
                assert name.split(".")[0] not in {"keras", "tensorflow", "tf_keras"}, file
