//! How a ramp grows: to how many guests, and by how many at a time.

use std::str::FromStr;

/// The most guests that can be asked for.
const MAX_GUESTS: u32 = 1_000_000;

/// Where a ramp ends, if no limit comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// So many guests.
    Guests(u32),
    /// As many as memory allows.
    Memory,
}

/// How much a step adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// So many guests.
    Add(u32),
    /// So many times as many as before; the first step is one guest.
    Times(f64),
}

impl Step {
    /// How many guests there are to be after those there are.
    pub(crate) fn after(self, guests: u32) -> u32 {
        match self {
            Self::Add(more) => guests.saturating_add(more),
            // One more at least; too many for a u32 are as many as it holds.
            Self::Times(factor) => ((f64::from(guests) * factor) as u32).max(guests + 1),
        }
    }
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "memory" => Ok(Self::Memory),
            _ => guests(text).map(Self::Guests).map_err(|why| format!("{why}, or `memory`")),
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(factor) = text.strip_prefix('x') else {
            return guests(text)
                .map(Self::Add)
                .map_err(|why| format!("{why}, or a factor like x2"));
        };
        match factor.parse::<f64>() {
            Ok(factor) if factor > 1.0 && factor <= 1_000.0 => Ok(Self::Times(factor)),
            _ => Err("a factor is a number above 1, up to 1000: x2".to_owned()),
        }
    }
}

fn guests(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ 1..=MAX_GUESTS) => Ok(number),
        _ => Err(format!("it is not a number of guests from 1 to {MAX_GUESTS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(step: &str, steps: usize) -> Vec<u32> {
        let step: Step = step.parse().expect(step);
        std::iter::successors(Some(step.after(0)), |&guests| Some(step.after(guests)))
            .take(steps)
            .collect()
    }

    #[test]
    fn steps_lead_up() {
        assert_eq!(course("23", 4), [23, 46, 69, 92]);
        assert_eq!(course("x2", 5), [1, 2, 4, 8, 16]);
        assert_eq!(course("x1.5", 6), [1, 2, 3, 4, 6, 9]);
        assert_eq!(Step::Times(1_000.0).after(4_000_000_000), u32::MAX);
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        for text in ["", "0", "-1", "1000001", "x", "x1", "x0.5", "xinf", "x1001", "2x"] {
            assert!(text.parse::<Step>().is_err(), "{text}");
        }
        assert_eq!("memory".parse(), Ok(Goal::Memory));
        assert_eq!("6417".parse(), Ok(Goal::Guests(6_417)));
        assert!("all".parse::<Goal>().unwrap_err().ends_with(", or `memory`"));
    }
}
