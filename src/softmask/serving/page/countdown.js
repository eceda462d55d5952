// A Countdown: numbers and a target, joined step by step; checked by its rules.

const COUNTDOWN = /(?:^|\n)Countdown\n(\d+(?:,\d+)+)\nSolution\n$/;
const NUMBER = "(0|[1-9]\\d{0,11})";
const EQUATION = new RegExp(`^\\s*${NUMBER}\\s*([-+*/])\\s*${NUMBER}\\s*=\\s*${NUMBER}\\s*$`);
const RESULTS = {
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "*": (a, b) => a * b,
  "/": (a, b) => a / b,
};

/** Whether a finished run solved one: { right, text }; null where it is about something else. */
function countdownVerdict(run) {
  const puzzle = COUNTDOWN.exec(promptOf(run))?.[1];
  if (!puzzle) return null;
  const fault = faultOfSteps(puzzle.split(",").map(Number), run.end.text.split(","));
  return { right: !fault, text: fault ? `not solved: ${fault}` : "solved" };
}

function faultOfSteps(numbers, steps) {
  const target = numbers.pop();
  if (steps.length !== numbers.length - 1) return `it takes ${plural(numbers.length - 1, "step")}`;
  const free = [...numbers];
  for (const step of steps) {
    const [, left, sign, right, result] = EQUATION.exec(step) ?? [];
    if (!sign) return `${quoted(step)} is no step`;
    for (const number of [left, right]) {
      const place = free.indexOf(Number(number));
      if (place < 0) return `${number} is not there to be used`;
      free.splice(place, 1);
    }
    if (RESULTS[sign](Number(left), Number(right)) !== Number(result)) {
      return `${left}${sign}${right} is not ${result}`;
    }
    free.push(Number(result));
  }
  return free[0] === target ? null : `${free[0]} is not ${target}`;
}
