//! `Error`: what can go wrong between text and ids; each message says what, where and what to do.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tokenizer file that is not there or is not one.
    #[error("{path}: {what}; take tokenizer.json from the model's own files")]
    TokenizerFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A vocabulary that contradicts itself or is of a kind that is not known.
    #[error("vocabulary: {0}")]
    Vocabulary(String),
    /// A text that the tokenizer refuses.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    /// A text where there is no vocabulary.
    #[error("this model has no vocabulary (tokenizer.json): give token ids instead of text")]
    IdsAlone,
    /// A template with a syntax error.
    #[error("chat template: {0}; it must be a Jinja template as transformers takes it")]
    TemplateSyntax(String),
    /// The template called `raise_exception`: the messages are not as the model wants them.
    #[error("the chat template refuses these messages: {0}")]
    TemplateRaised(String),
    /// The template failed on these messages.
    #[error("chat template: {0}; check that the messages have what the model's template reads")]
    TemplateFailed(String),
    /// The template ran too long.
    #[error("chat template: more than {limit} steps; send fewer messages or mend the template")]
    TemplateSteps {
        /// Most steps of one rendering.
        limit: u64,
    },
    /// The template wrote too much.
    #[error("chat template: more than {limit} bytes of text; send shorter messages")]
    TemplateOutput {
        /// Most bytes of one rendering.
        limit: usize,
    },
    /// A grammar that is wrong, too large, or asks for what cannot be promised.
    #[error("the grammar cannot be used: {0}")]
    Grammar(String),
    /// `continue_final_message` cannot be done.
    #[error("continue_final_message: {0}")]
    FinalMessage(&'static str),
    /// A template argument with the name of a variable that the request sets otherwise.
    #[error("template arguments cannot set {0}; use the request's own field for it")]
    ReservedArgument(String),
}
