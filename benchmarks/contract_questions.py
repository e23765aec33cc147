"""Questions over contracts with short answers, from CUAD's answers, as rows for `question_answering.py`.

python -m benchmarks.contract_questions --answers=cuad_clauses/answers.jsonl --output=contracts.jsonl

A row has the clauses of one contract about one subject, a question, and the answer that CUAD's lawyers wrote: a date as
month/day/year, a state or country, a period, or names. Questions that are answered by yes or no are left out.
"""

import argparse
import json
from pathlib import Path

QUESTIONS = {
    "Parties": "Who are the parties?",
    "Agreement Date": "What is the date of the contract? (month/day/year)",
    "Effective Date": "On what date is the contract effective? (month/day/year)",
    "Expiration Date": "On what date does the initial term expire? (month/day/year, or perpetual)",
    "Renewal Term": "What is the renewal term?",
    "Notice Period to Terminate Renewal": "What is the notice period to terminate renewal?",
    "Governing Law": "Which state's or country's law governs the contract?",
}


def main() -> None:
    """Writes the rows and prints their number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="CUAD's answers.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    given = map(json.loads, arguments.answers.read_text(encoding="utf-8").splitlines())
    rows = [
        {
            "contract": row["contract"],
            "context": " ".join(row["clauses"]),
            "question": QUESTIONS[row["category"]],
            "answers": {"text": [row["answer"]]},
        }
        for row in given
        if row["category"] in QUESTIONS and row["clauses"] and row["answer"].strip()
    ]
    arguments.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows):,} rows")


if __name__ == "__main__":
    main()
