//! The nouns of a caption, by its small words: the paper asks a language model for them (MPT-7B-Instruct); a caption of a
//! photograph is plain enough that what stands between articles, prepositions and verbs does.

/// A noun with what stands before it: "brown dog".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noun {
    /// Where the phrase begins in the caption, in bytes.
    pub phrase: usize,
    /// Where the noun does, and where both end.
    pub word: (usize, usize),
}

/// What a phrase begins behind.
const DETERMINERS: &str = "a an the this that these those his her its their my our your some several many two three four five six \
                           seven eight nine ten another each every both";
/// What else a phrase does not go on over: prepositions, conjunctions, pronouns, forms of to be, and verbs and adverbs that
/// captions have often and that end like nothing in particular.
const BETWEEN: &str = "of on in at by with near over under above below behind beside besides between through into onto from to for as \
                       around along across against beneath underneath inside outside within without upon up down off out next \
                       toward towards during amid among like and or but while where which who whom whose there it he she they we full \
                       i you him them is are was were be been being am has have had do does did can could will would not no so very \
                       just all one other else few much more most stand stands sit sits lie lies lay lays walk walks run runs ride rides \
                       hold holds look looks play plays eat eats wear wears fly flies jump jumps swim swims sleep sleeps lean leans \
                       rest rests hang hangs show shows made together alone apart away";
/// What is said of a picture, of a number of things or of a place in it, and of nothing that could be cut out.
const NOTHING: &str = "photo photograph picture image painting drawing illustration view shot close-up closeup close scene group couple pair \
                       bunch lot lots row side top bottom front back left right middle center centre corner edge background \
                       foreground distance day night time day light dark way something someone kind type piece part variety \
                       red green blue yellow white black brown grey gray orange purple pink";
/// Nouns that end as participles do.
const NO_PARTICIPLES: &str = "ring king string wing spring building painting ceiling clothing railing awning thing pudding icing evening \
                              morning wedding swing sling bed shed sled seed weed reed steed";
/// Who does what the next word says, "a man riding horses"; behind other words such a one describes, "a large wooden cutting
/// board".
const DOERS: &str = "man men woman women boy boys girl girls child children kid kids baby person people guy lady player players couple \
                     group crowd family dog dogs cat cats horse horses bird birds cow cows sheep elephant elephants giraffe giraffes \
                     zebra zebras bear bears monster monsters puppy kitten animal animals skier surfer skateboarder rider";
/// The most letters of a word that is one.
const LONGEST_WORD: usize = 40;
/// The most words of a phrase, the noun with them.
const LONGEST: usize = 4;

/// The nouns of `caption`, each with what describes it, in the order in which they stand; of two alike the first.
pub(super) fn of(caption: &str) -> Vec<Noun> {
    let mut found: Vec<Noun> = Vec::new();
    let mut phrase: Vec<(usize, usize)> = Vec::new();
    let mut end = |phrase: &mut Vec<(usize, usize)>| {
        if let Some(word @ (start, stop)) = phrase.last().copied() {
            let noun = caption[start..stop].to_lowercase();
            let is_again =
                |other: &Noun| caption[other.word.0..other.word.1].to_lowercase() == noun;
            if noun.chars().count() > 1 && !is_among(NOTHING, &noun) && !found.iter().any(is_again)
            {
                let first = phrase[phrase.len().saturating_sub(LONGEST)];
                found.push(Noun { phrase: first.0, word });
            }
        }
        phrase.clear();
    };
    let words = words(caption);
    let (mut after_determiner, mut last) = (false, 0);
    for (number, &(start, stop)) in words.iter().enumerate() {
        let word = caption[start..stop].to_lowercase();
        // A comma or a full stop.
        if caption[last..start].chars().any(|c| !c.is_whitespace()) {
            end(&mut phrase);
        }
        last = stop;
        let is_determiner = is_among(DETERMINERS, &word);
        let is_verb = is_participle(&word) && !after_determiner && {
            let before = phrase.last().map(|&(start, stop)| caption[start..stop].to_lowercase());
            let next = words.get(number + 1).filter(|next| caption[stop..next.0].trim().is_empty());
            let next = next.map(|&(start, stop)| caption[start..stop].to_lowercase());
            let describes = next.is_some_and(|next| !is_small(&next) && !is_participle(&next));
            before.is_none_or(|before| is_among(DOERS, &before)) || !describes
        };
        let is_part = !is_small(&word)
            && !is_verb
            && word.chars().any(char::is_alphabetic)
            && word.chars().count() <= LONGEST_WORD;
        match is_part {
            true => phrase.push((start, stop)),
            false => end(&mut phrase),
        }
        after_determiner = is_determiner;
    }
    end(&mut phrase);
    found
}

/// Whether it is a word between nouns; "it's" is "it".
fn is_small(word: &str) -> bool {
    let plain = word.split(['\'', '’']).next().unwrap_or_default();
    is_among(DETERMINERS, word)
        || is_among(BETWEEN, word)
        || plain != word && is_among(BETWEEN, plain)
}

fn is_participle(word: &str) -> bool {
    (word.ends_with("ing") || word.ends_with("ed")) && !is_among(NO_PARTICIPLES, word)
}

/// Whether a letter goes on with `c`: accents and vowels that are characters of their own, and all else beyond ASCII that is
/// neither a letter nor white space nor punctuation.
pub(super) fn goes_on(c: char) -> bool {
    let is_punctuation = matches!(c, '\u{a0}'..='\u{bf}' | '\u{2000}'..='\u{206f}' | '\u{3000}'..='\u{303f}' | '\u{ff00}'..='\u{ff0f}');
    !c.is_ascii() && !c.is_alphanumeric() && !c.is_whitespace() && !is_punctuation
}

fn is_among(list: &str, word: &str) -> bool {
    list.split_whitespace().any(|other| other == word)
}

/// Where each word begins and ends; hyphens and apostrophes are in it.
fn words(text: &str) -> Vec<(usize, usize)> {
    let is_word =
        |c: char| c.is_alphanumeric() || goes_on(c) || matches!(c, '-' | '\'' | '’' | '_');
    let mut found = Vec::new();
    let mut begun = None;
    for (at, c) in text.char_indices() {
        match (is_word(c), begun) {
            (true, None) => begun = Some(at),
            (false, Some(start)) => {
                found.push((start, at));
                begun = None;
            }
            _ => (),
        }
    }
    found.extend(begun.map(|start| (start, text.len())));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phrases(caption: &str) -> Vec<String> {
        let text = |noun: Noun| {
            format!("{}|{}", &caption[noun.phrase..noun.word.0], &caption[noun.word.0..noun.word.1])
        };
        of(caption).into_iter().map(text).collect()
    }

    #[test]
    fn nouns_of_captions_as_people_and_networks_write_them() {
        for (caption, nouns) in [
            ("a woman sitting on the beach with her dog", vec!["|woman", "|beach", "|dog"]),
            ("A brown dog and a small white cat.", vec!["brown |dog", "small white |cat"]),
            ("two horses standing in a parking garage", vec!["|horses", "parking |garage"]),
            ("a group of people riding bicycles", vec!["|people", "|bicycles"]),
            ("a close-up of a wedding ring", vec!["wedding |ring"]),
            ("a photo of a man dressed in a suit, a hat and a hat", vec!["|man", "|suit", "|hat"]),
            ("the side of a red building", vec!["red |building"]),
            ("a cat is sitting on 2 chairs", vec!["|cat", "|chairs"]),
            (
                "a small stuffed animal on a large wooden cutting board",
                vec!["small stuffed |animal", "large wooden cutting |board"],
            ),
            (
                "a young smiling woman and an old abandoned building",
                vec!["young smiling |woman", "old abandoned |building"],
            ),
            ("a man riding horses", vec!["|man", "|horses"]),
            ("a close up of a glass full of water", vec!["|glass", "|water"]),
            ("it's a dog who's in there", vec!["|dog"]),
            (
                "a cafe\u{301} and a bru\u{302}le\u{301}e",
                vec!["|cafe\u{301}", "|bru\u{302}le\u{301}e"],
            ),
            ("un café à Besançon", vec!["un café à |Besançon"]),
            ("", vec![]),
            ("…, - a", vec![]),
        ] {
            assert_eq!(phrases(caption), nouns, "{caption}");
        }
    }

    #[test]
    fn a_long_phrase_is_cut_before_its_noun() {
        assert_eq!(phrases("a big old tall red wooden house"), ["tall red wooden |house"]);
    }
}
