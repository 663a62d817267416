"""Executes notebooks as Jupyter does; prints of each, as a JSON object a line, the text that its cells print and how many pictures it has."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import nbclient
import nbformat


def execute(path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = [output.text for output in outputs if output.get("name") == "stdout"]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return {"text": "".join(text), "pictures": pictures}


with ThreadPoolExecutor() as pool:
    for done in pool.map(execute, sys.argv[1:]):
        print(json.dumps(done))
