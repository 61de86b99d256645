// The texts of the page in the browser's language: each English text is the key of its translation.
// Messages of the server are shown as they are.

const CHINESE = {
  "Offline model": "离线模型",
  "Conversation": "对话",
  "Conversations": "对话记录",
  "New": "新建",
  "New conversation": "新建对话",
  "Send a prompt and watch the answer arrive.": "发送提示词，回答会逐字显示。",
  "What is a rill, in one sentence?": "用一句话说明什么是 rill（细流）？",
  "Compare TCP and UDP in a table.": "用表格比较 TCP 和 UDP。",
  "Reverse a linked list in Python.": "用 Python 反转链表。",
  "API description": "API 描述",
  "Messages API documentation": "Messages API 文档",
  "API key": "API 密钥",
  "Use key": "使用密钥",
  "Prompt": "提示词",
  "Send": "发送",
  "Stop": "停止",
  "Options": "选项",
  "Model": "模型",
  "System prompt": "系统提示词",
  "Max tokens": "最大 token 数",
  "Enter sends, Shift+Enter starts a new line, Escape stops.": "Enter 发送，Shift+Enter 换行，Esc 停止。",
  "Sending it replaces the later answers.": "发送后将替换其后的回答。",
  "Cancel": "取消",
  "Scroll to the end": "滚动到末尾",
  "Close": "关闭",
  "Delete": "删除",
  "Delete all": "全部删除",
  "They are kept in this browser only.": "对话只保存在此浏览器中。",
  "You": "你",
  "Answer": "回答",
  "Retry": "重试",
  "Edit": "编辑",
  "Copy": "复制",
  "Copy text": "复制文本",
  "Copy Markdown": "复制 Markdown",
  "Plain text": "纯文本",
  "Copied.": "已复制。",
  "Deleted.": "已删除。",
  "New conversation.": "新对话。",
  "Waiting for the answer.": "正在等待回答。",
  "Receiving the answer.": "正在接收回答。",
  "Complete.": "完成。",
  "Complete: {0}.": "完成：{0}。",
  "Complete: max_tokens was reached.": "完成：已达到 max_tokens 上限。",
  "Complete: the model's context is full.": "完成：模型的上下文已满。",
  "Complete: the model refused. The next prompt omits this answer.": "完成：模型拒绝了。下一个提示词不包含此回答。",
  "Stopped.": "已停止。",
  "Interrupted: the page was closed.": "已中断：页面被关闭。",
  "Truncated: {0}": "已截断：{0}",
  "Rejected ({0}): {1}": "被拒绝（{0}）：{1}",
  "No answer: the server is unreachable.": "没有回答：无法连接服务器。",
  "The connection failed.": "连接失败。",
  "The connection closed early.": "连接提前关闭。",
  "The response does not come from Rill.": "响应不是来自 Rill。",
  "The server requires an API key.": "服务器需要 API 密钥。",
  "The server rejected this API key.": "服务器拒绝了此 API 密钥。",
  "{0} It is stored for this tab only.": "{0}密钥只保存在此标签页中。",
  "A proxy buffers the answers: each arrives all at once.": "代理缓冲了回答：内容一次性到达。",
  "{0} s to first text": "首个文本 {0} 秒",
  "{0} chars/s": "{0} 字符/秒",
  "{0} input tokens, {1} output tokens": "输入 {0} token，输出 {1} token",
};

const texts = navigator.language.startsWith("zh") ? CHINESE : {};

// Return a text in the browser's language, with values in place of {0}, {1} ...
export function t(text, ...values) {
  return (texts[text] ?? text).replace(/\{(\d)\}/g, (mark, index) => values[index] ?? mark);
}

// Translate the texts of a part of the page, each of which has an element of its own, and its attributes.
export function translate(node) {
  if (texts !== CHINESE) return;
  for (const each of node.querySelectorAll("*")) {
    for (const name of ["ariaLabel", "placeholder"]) if (each[name]) each[name] = t(each[name]);
    if (!each.firstElementChild) each.textContent = t(each.textContent);
  }
}

if (texts === CHINESE) document.documentElement.lang = "zh-CN";
