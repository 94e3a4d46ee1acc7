"""``python -m persona_lab.japanese 学生だよ。`` prints what a rule can name of each word."""

import sys

from persona_lab.japanese.morphology import words_of


def main() -> None:
    """Print a row of tab-separated values for each word of the arguments."""
    rows = [("word", "base", "kind", "type", "form")]
    for word in words_of(" ".join(sys.argv[1:])):
        rows.append((word.surface, word.lemma, word.pos, word.type, word.form))
    sys.stdout.writelines("\t".join(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
