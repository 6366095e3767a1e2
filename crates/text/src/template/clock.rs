//! `strftime_now`: the date and time in UTC, in Python's `strftime` codes.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() as i64
}

/// `datetime.strftime`. Codes that are not known stay as they are.
pub(super) fn strftime(seconds: i64, format: &str) -> String {
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, date) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = (day + 3).rem_euclid(7) as usize;
    let month_name = MONTHS[month as usize - 1];
    let half = if hour % 12 == 0 { 12 } else { hour % 12 };
    let of_year = day - first_day(year) + 1;

    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let code = chars.next();
        let (short, code) = if code == Some('-') { (true, chars.next()) } else { (false, code) };
        let padded = |number: i64, width: usize| {
            if short { number.to_string() } else { format!("{number:0width$}") }
        };
        let word = match code {
            Some('Y') => year.to_string(),
            Some('y') => padded(year.rem_euclid(100), 2),
            Some('m') => padded(month, 2),
            Some('d') => padded(date, 2),
            Some('e') => format!("{date:2}"),
            Some('j') => padded(of_year, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded(half, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => DAYS[weekday].to_owned(),
            Some('a') => DAYS[weekday][..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{date:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            // As Python's naive datetime has no zone.
            Some('Z' | 'z') => String::new(),
            Some('%') | None => "%".to_owned(),
            Some(other) => format!("%{other}"),
        };
        text.push_str(&word);
    }
    text
}

/// Year, month and day of the month of a day since 1970.
fn civil(day: i64) -> (i64, i64, i64) {
    let mut year = 1970 + day.div_euclid(366);
    while first_day(year + 1) <= day {
        year += 1;
    }
    let mut left = day - first_day(year);
    let mut month = 1;
    while left >= length(year, month) {
        left -= length(year, month);
        month += 1;
    }
    (year, month, left + 1)
}

/// The first of January, in days since 1970.
fn first_day(year: i64) -> i64 {
    let leaps = |year: i64| year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

fn length(year: i64, month: i64) -> i64 {
    match month {
        2 => first_day(year + 1) - first_day(year) - 337,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_does() {
        // From Python: datetime.fromtimestamp(seconds, UTC).strftime(format).
        for (seconds, format, expected) in [
            (0, "%Y-%m-%d %H:%M:%S %A", "1970-01-01 00:00:00 Thursday"),
            (951_782_399, "%d %b %Y %a %I:%M %p", "28 Feb 2000 Mon 11:59 PM"),
            (951_782_400, "%d %B %Y %j", "29 February 2000 060"),
            (951_868_800, "%F %T", "2000-03-01 00:00:00"),
            (1_735_689_599, "%j %y", "366 24"),
            (1_735_689_600, "%-d.%-m.%y %e", "1.1.25  1"),
            (4_107_542_400, "%F", "2100-03-01"),
            (-1, "%F %T", "1969-12-31 23:59:59"),
            (0, "100%% %Q %", "100% %Q %"),
        ] {
            assert_eq!(strftime(seconds, format), expected, "{seconds} {format}");
        }
    }
}
