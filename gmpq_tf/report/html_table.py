"""The result table as HTML."""

import html

from gmpq_tf.report.schema import METRICS, Summary
from gmpq_tf.report.table import AS_FLOAT, table_cells

# Name of a column -> what it holds.
HOLDS = {
    "{metric}": "of the Keras model in float{on_images}",
    "GBOPs": "1e9 multiply-adds x bits x bits",
    "weights": "at the policy's bits",
    "file": "as shipped",
    ".tflite": "{metric} of the shipped file",
    "agreement": "{answers} to which it and Keras give the same answer, computed in "
    "the file's integers where that was measured",
    AS_FLOAT: "images that the file decides as the float model does{on_images}",
}

# Metric -> what agreement is a share of.
ANSWERS = {"accuracy": "images", "map_07": "default boxes", "loss": "numbers"}


def html_table(summary: Summary) -> str:
    """Returns the HTML of the result table, and below it what its columns hold.

    Args:
        summary: the results of the run.
    """
    metric = summary.metric
    header, *body = table_cells(summary.rows, metric)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in body
    ]
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    table = "\n".join([f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>", *lines])
    words = {
        "metric": METRICS[metric],
        "answers": ANSWERS[metric],
        "on_images": summary.on_images,
    }
    holds = {name.format(**words): what.format(**words) for name, what in HOLDS.items()}
    legend = "; ".join(f"{name}: {holds[name]}" for name in header if name in holds)
    end = f'</tbody>\n</table>\n</div>\n<p class="note">{legend}.</p>'
    return f'<div class="wide">\n{table}\n{end}'
